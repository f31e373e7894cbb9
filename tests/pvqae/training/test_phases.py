from collections import Counter
from collections.abc import Callable

import pytest
import torch

from pvqae.core import config, runtime
from pvqae.features.examples import Examples
from pvqae.training import loop
from pvqae.training.run import Run, spread, start

Params = Callable[..., config.Params]
Make = Callable[[str], Examples]


@pytest.fixture
def run(params: Params, plan: runtime.Plan) -> Run:
    settings = params("vqgan", steps=100, batch=5, random_cells=0.5)
    return start(settings, plan, "full")


def test_each_pass_shows_every_view_once_in_another_order(run: Run) -> None:
    drawn = torch.cat([loop._order(run, 12, step) for step in range(12)])  # five passes over 12 views
    passes = drawn.view(5, 12).tolist()
    assert all(sorted(one) == list(range(12)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5


@pytest.mark.parametrize("count", [1, 3, 5])
def test_few_views_make_a_small_batch_without_repeats(run: Run, count: int) -> None:
    for step in range(4):
        assert Counter(loop._order(run, count, step).tolist()) == Counter(range(count))


@pytest.mark.parametrize(("steps", "warmup", "expected"), [(80, 0.1, 8), (1, 0.5, 0), (10, 1.0, 9), (10, 0.0, 0)])
def test_at_least_the_last_step_quantises(steps: int, warmup: float, expected: int) -> None:
    train = config.Train(steps=steps, warmup=warmup)
    assert loop._warmup_steps(train) == expected
    assert loop._ramp(train, max(0, expected - 1)) == 0


def test_the_ramp_ends_at_one_and_the_rate_near_nothing() -> None:
    train = config.Train(steps=50)
    assert loop._ramp(train, 49) == 1
    rates = [loop._learning_rate(train, step) for step in range(50)]
    assert max(rates) == pytest.approx(train.lr)
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.03 * train.lr


def test_allocation_is_random_in_warm_up_and_partly_to_the_end(run: Run) -> None:
    codes = [torch.randn(64, 4, 4, 4), torch.randn(64, 4, 8, 8)]
    with torch.no_grad():
        run.autoencoder.router.shift.copy_(torch.tensor([5.0, -5.0]))  # the coarse level, 95 times in 100
        run.autoencoder.router.output.weight.zero_()
        run.autoencoder.router.output.bias.zero_()
    valid = torch.ones(64, 4, 4, dtype=torch.bool)
    fine = [loop._allocate(run, codes, valid, step).levels.float().mean().item() for step in (0, 99)]
    assert fine[0] == pytest.approx(0.5, abs=0.05)
    assert fine[1] == pytest.approx(0.27, abs=0.05)  # half of the cells random, half of them fine
    again = loop._allocate(run, codes, valid, 99).onehot
    assert torch.equal(again, loop._allocate(run, codes, valid, 99).onehot)


def test_the_codebook_starts_on_what_every_level_gives(run: Run, examples: Make) -> None:
    loop._begin_quantisation(run, examples("vqgan"))
    assert bool(run.autoencoder.codebook.started)
    assert len(run.autoencoder.codebook.codes.unique(dim=0)) == 16


def test_kappa_is_fixed_by_params_or_found(run: Run, examples: Make, params: Params, plan: runtime.Plan) -> None:
    loop._balance_budget(run, examples("vqgan"))
    assert run.facts["kappa"] > 0
    settings = params("vqgan", kappa=0.3)
    fixed = start(settings, plan, "full")
    loop._balance_budget(fixed, examples("vqgan"))
    assert fixed.facts["kappa"] == 0.3


def test_the_budget_weighs_nothing_in_warm_up_and_its_maximum_at_the_end(run: Run) -> None:
    run.facts["kappa"] = 0.2
    weights = [loop._budget_weight(run, step) for step in range(100)]
    assert weights[:11] == [0.0] * 11
    assert weights[-1] == pytest.approx(0.2 * 1.25)
    assert weights == sorted(weights)


def test_a_mirrored_batch_is_mirrored_as_a_whole(examples: Make) -> None:
    for name in ("vqgan", "efficientnet_lite0"):
        batch = examples(name).batch(torch.tensor([0, 3]))
        twice = batch.mirrored().mirrored()
        assert torch.equal(twice.cost, batch.cost)
        assert torch.equal(batch.mirrored().cost, batch.cost.flip(-1))
        if batch.images is not None:
            assert torch.equal(batch.mirrored().images, batch.images.flip(-1))
        else:
            assert batch.features is not None
            assert torch.equal(batch.mirrored().features.levels[0], batch.features.levels[0].flip(-1))


def test_spread_takes_first_and_last_and_no_more_than_asked() -> None:
    assert spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread(100, 3).tolist() == [0, 49, 99]


def test_the_maximum_of_lambda_scales_the_price_and_does_not_cancel(
    examples: Make, params: Params, plan: runtime.Plan
) -> None:
    weights = []
    for most in (1.25, 5.0):
        run = start(params("vqgan", lambda_max=most), plan, "full")
        loop._balance_budget(run, examples("vqgan"))
        weights.append(loop._budget_weight(run, run.params.train.steps - 1))
    assert weights[1] == pytest.approx(4 * weights[0])
