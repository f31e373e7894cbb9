"""Gaussians of places: what belongs together and does not come together is far, and no normal judges itself."""

import pytest
import torch
from flows.experiments.further import _Gaussians, _Shape
from torch import Tensor

PLACES, CHANNELS = 3, 4


def fitted(x_nND: Tensor, group: tuple[int, ...] = (0, 1, 2)) -> _Gaussians:
    squares = torch.einsum("bnd,bne->nde", x_nND, x_nND)
    return _Gaussians.of(len(x_nND), x_nND.sum(0), squares, torch.tensor(group))


def normals(count: int, seed: int = 0) -> Tensor:
    """Channels 0 and 1 are nearly one; each place has a mean of its own; n x N x D."""
    x = torch.randn(count, PLACES, CHANNELS, generator=torch.Generator().manual_seed(seed))
    x[..., 1] = x[..., 0] + 0.05 * x[..., 1]
    return x + 10 * torch.arange(PLACES)[:, None]


def test_a_broken_correlation_is_far_and_an_ordinary_cell_is_not() -> None:
    found, odd = fitted(normals(400)), normals(1, seed=1)
    own = found.distances(normals(50, seed=2))
    assert 0.8 < float(own.mean()) < 1.2
    odd[0, 1, :2] = 10 + torch.tensor([1.5, -1.5])
    assert float(found.distances(odd)[0, 1]) > 5 * float(own.max())


def test_each_place_has_its_own_mean() -> None:
    found, moved = fitted(normals(400)), normals(1, seed=1).roll(1, dims=1)
    assert float(found.distances(moved).min()) > 5


def test_fewer_views_than_channels_still_give_finite_distances() -> None:
    found = fitted(normals(2))
    distances = found.distances(normals(20, seed=3))
    assert bool(torch.isfinite(distances).all())
    assert float(distances.max()) < 100


def test_places_that_share_a_covariance_keep_their_means() -> None:
    """Places 0 and 1 share one; only place 2 is broad."""
    x = normals(400)
    x[:, 2] = 20 + 5 * (x[:, 2] - 20)
    shared, own = fitted(x, (0, 0, 1)), fitted(x)
    new = normals(50, seed=4)
    assert torch.allclose(shared.distances(new), own.distances(new), rtol=0.2, atol=0.2)
    assert float(fitted(x, (0, 0, 0)).distances(new)[:, :2].mean()) < 0.6  # one for all is too broad for them


@pytest.mark.parametrize(("side", "count"), [(1, 24), (2, 6), (0, 1)])
def test_squares_of_places_share_a_covariance(side: int, count: int) -> None:
    group = _Shape(100, side).groups(4, 6)
    assert (len(group), len(torch.unique(group)), int(group.max())) == (24, count, count - 1)
    if side == 2:
        assert group.view(4, 6)[:2, :2].unique().tolist() == [0]
        assert group.view(4, 6)[2:, 4:].unique().tolist() == [5]
