"""Groupings of classes, and priors that tell views apart by their allocations."""

import pytest
import torch

from pvqae.core import config
from pvqae.prior import learn, prior
from pvqae.prior import prior as single
from pvqae.prior.prior import BudgetPrior
from pvqae.samples import classes

GRID = (8, 8)


def halves(count: int, side: int) -> torch.Tensor:
    """Logits count x 2 x 8 x 8: the fine level on the left (side 0) or on the right."""
    fine = torch.zeros(GRID)
    fine[:, 4 * side : 4 * side + 4] = 1
    noise = 0.1 * torch.randn(count, 2, *GRID, generator=torch.Generator().manual_seed(side))
    return 3 * torch.stack([1 - 2 * fine, 2 * fine - 1]) + noise


def everywhere(logits: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(logits), *GRID, dtype=torch.bool)


def prior_of(seed: int) -> BudgetPrior:
    torch.manual_seed(seed)
    prior = BudgetPrior(GRID, 2, 16)
    torch.nn.init.normal_(prior.base)
    return prior.eval().requires_grad_(False)


@pytest.fixture
def two_sides() -> prior.Clustered:
    logits = torch.cat([halves(20, 0), halves(20, 1)])
    centres = learn._centres(prior.Clustered.describe(logits, everywhere(logits)), 2, seed=0)
    return prior.Clustered(centres, [prior_of(1), prior_of(2)]).eval()


@pytest.mark.parametrize("name", sorted(classes.GROUPINGS))
def test_every_class_is_in_exactly_one_group(name: str) -> None:
    groups = classes.GROUPINGS[name](["a", "b", "c"])
    assert sorted(member for members in groups.values() for member in members) == ["a", "b", "c"]


def test_only_clustered_may_have_several_priors() -> None:
    most = {name: learn._most_clusters(config.Prior(grouping=name, clusters=3)) for name in classes.GROUPINGS}
    assert most == {"per_class": 1, "universal": 1, "clustered": 3}


def test_clusters_are_found_without_labels_and_unseen_views_go_to_theirs(two_sides: prior.Clustered) -> None:
    unseen = torch.cat([halves(3, 1), halves(3, 0)])
    left, right = (
        two_sides.assign(unseen[-1:], everywhere(unseen[-1:])),
        two_sides.assign(unseen[:1], everywhere(unseen[:1])),
    )
    assert left != right
    assert two_sides.assign(unseen, everywhere(unseen)).tolist() == [*right.tolist() * 3, *left.tolist() * 3]


def test_each_view_is_expected_as_its_clusters_prior_says(two_sides: prior.Clustered) -> None:
    logits = torch.cat([halves(2, 1), halves(2, 0)])[[0, 2, 1, 3]]
    valid = everywhere(logits)
    chosen = two_sides.assign(logits, valid)
    found = prior.expect(two_sides, logits, valid)
    for view, cluster in enumerate(chosen.tolist()):
        alone = single.expect(two_sides.members[cluster], logits[view : view + 1], valid[view : view + 1])
        for part, expected in zip(found, alone, strict=True):
            assert torch.allclose(part[view], expected[0], atol=1e-5)


def test_a_prior_comes_back_from_its_tensors(two_sides: prior.Clustered) -> None:
    for one in (two_sides, prior_of(3)):
        again = prior.from_tensors(one.state_dict(), GRID, 2, 16)
        assert type(again) is type(one)
        logits = halves(4, 0)
        pairs = zip(*(prior.expect(p, logits, everywhere(logits)) for p in (one, again)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_padding_does_not_say_where_a_view_belongs() -> None:
    logits, valid = halves(2, 0), everywhere(halves(2, 0))
    valid[:, 5:] = False
    garbage = torch.where(valid[:, None], logits, torch.full_like(logits, 5.0))
    assert torch.equal(prior.Clustered.describe(logits, valid), prior.Clustered.describe(garbage, valid))


@pytest.mark.parametrize(("count", "most"), [(1, 1), (15, 1), (16, 2), (200, 4)])
def test_no_cluster_is_too_small_to_learn_from(count: int, most: int) -> None:
    described = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    found = learn._centres(described, 4, seed=0)
    assert 1 <= len(found) <= most
    assert torch.bincount(torch.cdist(described, found).argmin(1)).min() >= min(count, learn._LEAST)


def test_equal_views_are_one_cluster_and_a_second_run_gives_the_same() -> None:
    assert len(learn._centres(torch.ones(40, 6), 4, seed=0)) == 1
    described = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(learn._centres(described, 4, seed=5), learn._centres(described, 4, seed=5))
