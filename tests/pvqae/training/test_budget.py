import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvqae.model.autoencoder import as_onehot
from pvqae.training.losses import SCHEDULES, automatic_kappa, budget_loss, costs

LEVELS = [1, 2, 3, 4]
VALID = torch.ones(2, 4, 4, dtype=torch.bool)


def everywhere(level: int, levels: int) -> torch.Tensor:
    return as_onehot(torch.full((2, 4, 4), level), levels)


@pytest.mark.parametrize(
    ("levels", "expected"), [(1, [1]), (2, [1 / 4, 1]), (3, [1 / 16, 1 / 4, 1]), (4, [1 / 64, 1 / 16, 1 / 4, 1])]
)
def test_each_finer_level_costs_four_times_as_many_codes(levels: int, expected: list[float]) -> None:
    assert costs(levels).tolist() == expected


@pytest.mark.parametrize("levels", LEVELS)
def test_all_fine_costs_one_and_all_coarse_the_least(levels: int) -> None:
    for level in range(levels):
        found = budget_loss(everywhere(level, levels), torch.ones(2, 4, 4), VALID)
        assert found.item() == pytest.approx(4.0 ** (level - levels + 1))


def test_fine_codes_are_dearer_where_entropy_is_high() -> None:
    levels = torch.zeros(1, 1, 2, dtype=torch.long)
    entropy, valid = torch.tensor([[[0.9, 0.2]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    prices = []
    for cell in range(2):
        levels[:] = 0
        levels[0, 0, cell] = 2
        prices.append(budget_loss(as_onehot(levels, 3), entropy, valid).item())
    assert prices[0] > prices[1]
    assert prices[0] == pytest.approx((0.9 + 0.2 / 16) / 2)


def test_padding_costs_nothing() -> None:
    levels = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    entropy, valid = torch.rand(2, 4, 4), VALID.clone()
    valid[:, 0] = False
    fine = levels.clone()
    fine[:, 0] = 2
    changed = entropy.clone()
    changed[:, 0] = 1
    before, after = (budget_loss(as_onehot(b, 3), h, valid) for b, h in ((levels, entropy), (fine, changed)))
    assert torch.equal(before, after)
    assert torch.equal(*(budget_loss(as_onehot(b, 3), torch.ones(2, 4, 4), valid) for b in (levels, fine)))


def test_the_budget_pushes_logits_towards_coarse_codes() -> None:
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    budget_loss(logits.softmax(1), torch.ones(2, 4, 4), VALID).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2] > 0).all()
    assert (logits.grad[:, 0] < 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
@given(progress=st.floats(0, 1), spent=st.floats(0, 1), state=st.floats(0, 1))
def test_every_schedule_stays_a_share_of_its_maximum(name: str, progress: float, spent: float, state: float) -> None:
    assert 0 <= SCHEDULES[name](progress, spent, state) <= 1


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ramps_rise_from_nothing_to_all(name: str) -> None:
    values = [SCHEDULES[name](i / 20, 0.5, 0.0) for i in range(21)]
    assert values[0] == 0
    assert math.isclose(values[-1], 1)
    assert values == sorted(values)
    assert len(set(values)) == 21


def test_cosine_is_slow_at_both_ends_and_linear_is_not() -> None:
    assert SCHEDULES["cosine"](0.1, 0, 0) < SCHEDULES["linear"](0.1, 0, 0) == 0.1
    assert SCHEDULES["cosine"](0.9, 0, 0) > SCHEDULES["linear"](0.9, 0, 0)
    assert {SCHEDULES["constant"](i / 9, 0, 0) for i in range(10)} == {1.0}


def test_the_adaptive_price_follows_what_is_spent_until_it_rests_on_target() -> None:
    price = SCHEDULES["adaptive"]
    assert price(0.5, 0.9, 0.5) > 0.5
    assert price(0.5, 0.1, 0.5) < 0.5
    assert price(0.5, 0.4, 0.5) == 0.5
    value = 0.0
    for _ in range(2000):  # demand falls with the price
        value = price(0.5, 1.0 - value, value)
    assert 1.0 - value == pytest.approx(0.4, abs=0.01)


def test_at_the_full_price_half_of_the_cells_are_worth_fine_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    gain, cost = 1e-3 * torch.rand(1001, generator=generator), 0.1 + 0.9 * torch.rand(1001, generator=generator)
    for scale in (1.0, 100.0):  # whatever the scale of the reconstruction loss
        kappa = automatic_kappa(scale * gain, cost, 1.25, 3)
        price = kappa * 1.25 * cost * (1 - 1 / 16)
        assert ((scale * gain > price).float().mean().item()) == pytest.approx(0.5, abs=0.01)


def test_kappa_is_positive_even_where_fine_codes_gain_nothing() -> None:
    assert automatic_kappa(torch.full((5,), -1.0), torch.zeros(5), 1.25, 3) > 0
    assert math.isfinite(automatic_kappa(torch.ones(5), torch.zeros(5), 0.0, 1))
