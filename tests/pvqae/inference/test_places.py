"""What is normal at each place, against what NumPy says of it."""

import numpy as np
import pytest
import torch

from pvqae.calibration.normals import PlaceSums
from pvqae.inference.measures import PlaceMemory, Projection

SIDE, CHANNELS = 3, 5
GROUPS = torch.tensor([7, 7, 2, 4, 9, 0])  # numbers of a whole class, of which a fit sees some


def features(views: int = 6) -> torch.Tensor:
    """Return views x 5 x 3 x 3: each place has a mean of its own, and channels go together."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(views, SIDE, SIDE, CHANNELS, generator=generator) @ torch.randn(
        CHANNELS, CHANNELS, generator=generator
    )
    return (mixed + 5 * torch.randn(SIDE, SIDE, CHANNELS, generator=generator)).movedim(-1, 1)


def everything(views: int = 6) -> torch.Tensor:
    return torch.ones(views, SIDE, SIDE, dtype=torch.bool)


def fitted(x: torch.Tensor, groups: torch.Tensor, valid: torch.Tensor | None = None, width: int = 0) -> PlaceMemory:
    """Two views at a time."""
    sums, valid = PlaceSums(groups, width, 0), everything(len(x)) if valid is None else valid
    for i in range(0, len(x), 2):
        sums.add(x[i : i + 2], valid[i : i + 2], groups[i : i + 2])
    return sums.fitted()


def by_numpy(x: torch.Tensor, learnt: list[int], asked: int) -> np.ndarray:
    """Return the distances of view `asked` by what the views `learnt` say, h x w."""
    known = x.double().movedim(1, -1).numpy()
    some = known[learnt]
    means = (some.sum(0) + some.mean((0, 1, 2))) / (len(some) + 1)
    residuals = (some - means).reshape(-1, CHANNELS)
    covariance = residuals.T @ residuals / len(residuals)
    covariance += np.eye(CHANNELS) * (0.01 * np.trace(covariance) / CHANNELS + 1e-6)
    away = known[asked] - means
    return np.sqrt(np.einsum("hwc,cd,hwd->hw", away, np.linalg.inv(covariance), away) / CHANNELS)


def test_new_views_are_compared_with_the_mean_of_their_place() -> None:
    x = features()
    found = fitted(x, GROUPS).distances(x, everything())
    for view in range(len(x)):
        assert found[view].numpy() == pytest.approx(by_numpy(x, [*range(6)], view), abs=0.05)  # means are bytes


def test_a_normal_is_compared_with_what_other_folds_taught() -> None:
    x = features()
    found = fitted(x, GROUPS).distances(x, everything(), GROUPS)
    # the groups 0, 2, 4, 7, 9 take the folds 0, 1, 2, 3, 0
    learnt = {0: [2, 3, 4, 5], 1: [2, 3, 4, 5], 2: [0, 1, 3, 4, 5], 3: [0, 1, 2, 4, 5], 4: [0, 1, 2, 3]}
    for view, others in learnt.items():
        assert found[view].numpy() == pytest.approx(by_numpy(x, others, view), abs=0.05)


def test_padding_teaches_nothing() -> None:
    x, valid = features(), everything()
    valid[:, 0] = False
    left = x.clone()
    left[:, :, 0] = 1e3
    one, two = fitted(x, GROUPS, valid), fitted(left, GROUPS, valid)
    assert torch.equal(one.root, two.root)
    assert torch.equal(one.places, two.places)
    assert not one.places[0].any()  # where no view ever had a cell: what all places are like


@pytest.mark.parametrize("views", [1, 2])
def test_few_views_have_finite_distances(views: int) -> None:
    x = features(views)
    memory = fitted(x, GROUPS[-views:])
    assert memory.distances(x, everything(views), GROUPS[-views:]).isfinite().all()
    assert memory.distances(features()[3:4], everything(1)).isfinite().all()


def test_wide_features_are_projected() -> None:
    x = torch.randn(6, 40, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    memory = fitted(x, GROUPS, width=16)
    assert isinstance(memory.projection, Projection)
    assert (memory.places.shape, memory.root.shape) == ((SIDE, SIDE, 16), (16, 16))
    assert memory.distances(x, everything(), GROUPS).shape == (6, SIDE, SIDE)
    assert torch.equal(memory.root, fitted(x, GROUPS, width=16).root)


def test_a_part_at_the_wrong_place_is_far() -> None:
    """What a memory of codes can't see: every feature is normal somewhere."""
    generator = torch.Generator().manual_seed(0)
    place = 5 * torch.randn(CHANNELS, SIDE, SIDE, generator=generator)
    x = place + torch.randn(12, CHANNELS, SIDE, SIDE, generator=generator)
    memory = fitted(x, torch.arange(12))
    moved = x[:1].roll(1, dims=3)
    normal = memory.distances(x, everything(12), torch.arange(12))
    assert memory.distances(moved, everything(1)).min() > normal.max()


def test_a_settled_memory_judges_new_views_the_same_and_is_a_fifth_of_the_size() -> None:
    x = features()
    memory = fitted(x, GROUPS)
    kept = memory.settled()
    assert len(memory.without) == 4
    assert not kept.without
    assert not len(kept.folds)
    assert torch.equal(kept.distances(x, everything()), memory.distances(x, everything()))
    assert kept.apart_from(7) is kept
