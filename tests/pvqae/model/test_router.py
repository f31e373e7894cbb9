import pytest
import torch

from pvqae.model import autoencoder
from pvqae.model.autoencoder import Allocation, _Router, as_onehot, merge
from pvqae.training.loop import _gumbel_onehot, _random_onehot

LEVELS = [1, 2, 3, 4]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pyramid(levels: int, dim: int = 8, batch: int = 2) -> list[torch.Tensor]:
    """R maps, coarse 2 x 2 and each next twice as fine."""
    return [torch.randn(batch, dim, 2 * 2**r, 2 * 2**r, generator=draws(r)) for r in range(levels)]


def is_onehot(x_BRhw: torch.Tensor) -> bool:
    return bool((x_BRhw.sum(1) - 1).abs().max() < 1e-6 and ((x_BRhw.abs() < 1e-6) | ((x_BRhw - 1).abs() < 1e-6)).all())


@pytest.mark.parametrize("levels", LEVELS)
def test_logits_are_per_coarse_cell_and_bounded(levels: int) -> None:
    logits = _Router(8, levels, 16)([1e4 * x for x in pyramid(levels)])
    assert logits.shape == (2, levels, 2, 2)
    assert logits.abs().max() <= autoencoder._LOGIT_LIMIT


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_every_choice_is_one_hot(levels: int, temperature: float) -> None:
    logits = 3 * torch.randn(4, levels, 3, 5, generator=draws())
    chosen = _gumbel_onehot(logits, temperature, draws())
    assert chosen.shape == logits.shape
    assert is_onehot(chosen)
    assert is_onehot(_random_onehot(logits.shape, draws()))


def test_gumbel_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    frequencies = _gumbel_onehot(logits, 1.0, draws()).mean((0, 2, 3))
    torch.testing.assert_close(frequencies, torch.tensor([0.0, 1.0, -1.0]).softmax(0), atol=0.01, rtol=0)


def test_random_levels_are_even() -> None:
    frequencies = _random_onehot(torch.Size((1, 4, 100, 100)), draws()).mean((0, 2, 3))
    torch.testing.assert_close(frequencies, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_the_generator_decides_alone() -> None:
    logits = torch.randn(2, 3, 8, 8)
    first, again, other = (_gumbel_onehot(logits, 1.0, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("levels", LEVELS)
def test_merging_one_level_everywhere_is_that_level_enlarged(levels: int) -> None:
    maps = pyramid(levels)
    for r, x in enumerate(maps):
        merged = merge(maps, as_onehot(torch.full((2, 2, 2), r), levels))
        times = maps[-1].shape[-1] // x.shape[-1]
        assert torch.equal(merged, x.repeat_interleave(times, -1).repeat_interleave(times, -2))


def test_each_cell_gets_its_own_level() -> None:
    maps = [torch.full((1, 1, 2 * 2**r, 2 * 2**r), float(r)) for r in range(3)]
    levels = torch.tensor([[[0, 1], [2, 0]]])
    merged = merge(maps, as_onehot(levels, 3))[0, 0]
    assert torch.equal(merged, levels[0].float().repeat_interleave(4, 0).repeat_interleave(4, 1))


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_reaches_every_branch_and_the_logits_through_a_hard_choice(levels: int) -> None:
    maps = [x.requires_grad_() for x in pyramid(levels)]
    logits = torch.zeros(2, levels, 2, 2, requires_grad=True)
    merged = merge(maps, _gumbel_onehot(logits, 1.0, draws()))
    (merged * torch.randn(merged.shape, generator=draws())).sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in maps)
    assert logits.grad is not None
    assert levels == 1 or logits.grad.abs().sum() > 0


def test_an_allocation_tells_its_levels_and_soft_form() -> None:
    levels = torch.randint(3, (2, 4, 4), generator=draws())
    allocation = Allocation(torch.randn(2, 3, 4, 4, generator=draws()), as_onehot(levels, 3))
    assert torch.equal(allocation.levels, levels)
    torch.testing.assert_close(allocation.soft.sum(1), torch.ones(2, 4, 4))


def test_standardised_logits_keep_every_level_in_use_on_cells_that_hardly_differ() -> None:
    router = _Router(8, 3, 16)
    levels = [1 + 0.01 * torch.randn(32, 8, size, size) for size in (4, 8, 16)]
    valid = torch.ones(32, 4, 4, dtype=torch.bool)
    for _ in range(40):
        router.observe(levels, valid)
    shares = torch.bincount(router(levels).argmax(1).flatten(), minlength=3) / valid.sum()
    assert shares.min() > 0.05


def test_padding_does_not_move_the_standardisation() -> None:
    one, other = _Router(8, 2, 16), _Router(8, 2, 16)
    other.load_state_dict(one.state_dict())
    levels = [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 8, 8)]
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[:, :, 3] = False
    one.observe(levels, valid)
    raw = other._raw(levels).movedim(1, -1)[valid]
    assert torch.allclose(one.mean, 0.2 * raw.mean(0), atol=1e-6)


def test_one_valid_cell_leaves_the_standardisation_as_it_was() -> None:
    router = _Router(8, 2, 16)
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = True
    router.observe([torch.randn(1, 8, 4, 4), torch.randn(1, 8, 8, 8)], valid)
    assert torch.equal(router.deviation, torch.ones(2))
    assert torch.equal(router.mean, torch.zeros(2))
