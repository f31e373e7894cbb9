"""The three tests of the mechanism on a network whose gain from fine codes is known cell by cell."""

from typing import cast

import pytest
import torch
from torch import Tensor

from flows.experiments import mechanism
from pvqae.features.examples import Examples
from pvqae.inference.measures import Allocator, Networks
from pvqae.model.autoencoder import Allocation, Autoencoder, Output, as_onehot
from pvqae.model.backbones import Backbone, Features, Spec
from pvqae.prior.prior import BudgetPrior, expect

LEVELS, SIDE = 3, 4


class Known:
    """Reconstructs a cell of need x with an error of (x * what is left to the finest level)^2; `order` 1 gives fine
    codes to needy cells, -1 to the others, 0 regardless of need."""

    spec = Spec((1, 1, 1), (1,), "features", frozen=True)

    def __init__(self, order: int):
        self.order = order

    def codes(self, features: Features) -> list[Tensor]:
        return features.levels

    def router(self, codes: list[Tensor]) -> Tensor:
        need = codes[0][:, 0]
        noise = torch.rand(need.shape, generator=torch.Generator().manual_seed(1))
        rank = {1: need, -1: 1 - need, 0: noise}[self.order]
        levels = (rank * LEVELS).long().clamp(0, LEVELS - 1)
        return 5 * as_onehot(levels, LEVELS)

    def allocate(self, codes: list[Tensor]) -> Allocation:
        logits = self.router(codes)
        return Allocation(logits, as_onehot(logits.argmax(1), LEVELS))

    def standardised_target(self, features: Features) -> Tensor:
        return torch.zeros_like(features.target)

    def reconstruct(self, features: Features, valid: Tensor, onehot: Tensor) -> Output:
        left = 1 - onehot.argmax(1, keepdim=True) / (LEVELS - 1)
        nothing = torch.zeros(0)
        return Output(features.levels[0] * left, Allocation(onehot, onehot), nothing, nothing, nothing)


def networks(order: int) -> Networks:
    """The actual allocation stands in for the prior, so that what is expected is known, too."""
    prior = mechanism._StandIn((SIDE, SIDE), LEVELS, None).eval()
    return Networks(cast(Backbone, None), Allocator(cast(Autoencoder, Known(order)), prior, "gaussian"), {}, None)


@pytest.fixture(scope="module")
def normals() -> Examples:
    """64 views of 4 x 4 cells with needs in [0, 1]; the last column is padding."""
    need = torch.rand(64, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(64, 32 * SIDE, 32 * SIDE, dtype=torch.bool)
    valid[..., -32:] = False
    return Examples(torch.arange(64), None, Features([need] * LEVELS, need), torch.ones(64, SIDE, SIDE), valid)


@pytest.mark.parametrize(("order", "low", "high"), [(1, 0.9, 1.0), (-1, -1.0, -0.9), (0, -0.15, 0.15)])
def test_levels_that_follow_need_correlate_with_savings(order: int, low: float, high: float, normals: Examples) -> None:
    use = mechanism.use(networks(order), normals)
    assert len(use.saving) == 64 * SIDE * (SIDE - 1)
    torch.testing.assert_close(use.saving, normals.features.levels[0][:, 0, :, :-1].square().flatten())  # type: ignore[union-attr]
    assert use.spearman is not None
    assert low <= use.spearman <= high
    assert min(use.shares(LEVELS)) >= mechanism.REAL_USE


def test_one_level_for_all_is_no_use_and_has_no_correlation() -> None:
    use = mechanism.Use(torch.rand(50), torch.ones(50, dtype=torch.long))
    assert use.spearman is None
    assert use.shares(LEVELS) == [0, 1, 0]


def test_shuffling_a_good_budget_costs_a_bad_one_gains_and_a_blind_one_does_neither(normals: Examples) -> None:
    good, bad, blind = (mechanism.shuffled_raise(networks(order), normals, seed=0) for order in (1, -1, 0))
    assert good > 0.5
    assert bad < -0.2
    assert abs(blind) < 0.15


def test_shuffling_keeps_each_views_shares_and_padding() -> None:
    levels = torch.randint(3, (5, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    valid = torch.ones(5, SIDE, SIDE, dtype=torch.bool)
    valid[:, 0] = False
    mixed = mechanism._shuffled(levels, valid, torch.Generator().manual_seed(3))
    assert (mixed[:, 0] == levels[:, 0]).all()
    assert (mixed != levels).any()
    for before, after in zip(levels, mixed, strict=True):
        assert before.flatten().sort().values.tolist() == after.flatten().sort().values.tolist()


@pytest.mark.parametrize(("name", "level"), [("coarse", 0), ("medium", 1), ("fine", 2)])
def test_a_constant_budget_expects_its_level_everywhere(name: str, level: int) -> None:
    put = mechanism.BUDGETS[name](networks(1))
    logits = torch.randn(2, LEVELS, SIDE, SIDE)
    expected = expect(put.trained.prior, logits, torch.ones(2, SIDE, SIDE, dtype=torch.bool))
    assert (expected.logits.argmax(-1) == level).all()


def test_the_actual_budget_is_what_is_spent_and_the_expected_one_is_the_priors() -> None:
    logits, valid = torch.randn(2, LEVELS, SIDE, SIDE), torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    found = networks(1)
    actual = expect(mechanism.BUDGETS["actual"](found).trained.prior, logits, valid)
    assert (actual.logits.argmax(-1).view(2, SIDE, SIDE) == logits.argmax(1)).all()
    own = BudgetPrior((SIDE, SIDE), LEVELS, 8)
    assert mechanism.BUDGETS["expected"](found.allocating(prior=own)).trained.prior is own


def test_the_error_is_that_of_the_actual_allocation(normals: Examples) -> None:
    needy, blind = (mechanism.error_of(networks(order), normals) for order in (1, 0))
    assert 0 < needy < blind
