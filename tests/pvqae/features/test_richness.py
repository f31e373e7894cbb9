import numpy as np
import pytest
import pywt
import torch

from pvqae.features import richness
from pvqae.features.richness import _NOISE_FLOOR, RICHNESS

MEASURES = [name for name in RICHNESS if name not in ("none", "inverted_dwt_entropy")]
FLAT, FAINT, EDGE = range(3)


@pytest.fixture(scope="module")
def grades() -> torch.Tensor:
    """3 x 32 x 32: flat, a little structure, a strong edge with a line."""
    patches = torch.full((3, 32, 32), 0.5)
    patches[FAINT, :, 13:] += 0.02
    patches[EDGE, :, 13:] += 0.4
    patches[EDGE, 20:22] -= 0.4
    return patches


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """4 x 3 x 128 x 128 in [0, 1], of different contrast."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.tensor([0.0, 0.01, 0.2, 0.5]).view(4, 1, 1, 1)
    return 0.5 + contrast * (torch.rand(4, 3, 128, 128, generator=generator) - 0.5)


@pytest.mark.parametrize("name", RICHNESS)
def test_costs_are_shares_one_per_patch(name: str, pictures: torch.Tensor, grades: torch.Tensor) -> None:
    for values in (richness.cost(pictures, name), RICHNESS[name](grades)):
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6
    assert richness.cost(pictures, name).shape == (4, 4, 4)
    assert not richness.cost(pictures, name).requires_grad


@pytest.mark.parametrize("name", MEASURES)
def test_the_poorer_a_patch_the_higher_its_cost(name: str, grades: torch.Tensor) -> None:
    flat, faint, edge = RICHNESS[name](grades).tolist()
    assert flat > faint > edge
    assert flat > 0.99


@pytest.mark.parametrize("name", RICHNESS)
def test_a_batch_gives_what_each_image_gives_alone(name: str, pictures: torch.Tensor) -> None:
    alone = torch.cat([richness.cost(one[None], name) for one in pictures])
    torch.testing.assert_close(richness.cost(pictures, name), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MEASURES)
def test_a_cost_belongs_to_its_own_cell(name: str) -> None:
    picture = torch.full((1, 3, 64, 96), 0.5)
    picture[..., 37:, 64:77] = 0.9
    values = richness.RICHNESS[name](richness.patches(picture)).view(2, 3)
    assert (values < values[0, 0] - 0.05).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(("side", "depth"), [(32, 3), (16, 2)])
def test_dwt_entropy_equals_a_plain_loop_over_patches(side: int, depth: int) -> None:
    patches = torch.rand(7, side, side, generator=torch.Generator().manual_seed(1))
    expected = []
    for patch in patches.numpy().astype(np.float64):
        details = pywt.wavedec2(patch, "haar", level=depth)[1:]
        energy = np.concatenate([band.ravel() for triple in details for band in triple]) ** 2 + _NOISE_FLOOR
        share = energy / energy.sum()
        expected.append(-(share * np.log(share)).sum() / np.log(len(share)))
    np.testing.assert_allclose(richness._dwt_entropy(patches).numpy(), expected, atol=1e-6)


def test_brightness_alone_is_no_richness() -> None:
    patches = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2)) * 0.3
    for name in RICHNESS:
        torch.testing.assert_close(RICHNESS[name](patches), RICHNESS[name](patches + 0.5), atol=1e-4, rtol=0)


def test_rescaling_stretches_the_middle_of_the_range_and_keeps_the_order() -> None:
    cost = torch.rand(20, 4, 4, generator=torch.Generator().manual_seed(3)) * 0.4 + 0.55
    found = richness.rescale(cost, torch.ones_like(cost, dtype=torch.bool))
    assert (found.min().item(), found.max().item()) == (pytest.approx(0.05), 1.0)
    assert 0.04 < (found == found.min()).float().mean() < 0.06
    order = cost.flatten().argsort()
    assert (found.flatten()[order].diff() >= 0).all()


def test_rescaling_ignores_padding_and_leaves_equal_costs_alone() -> None:
    cost = torch.rand(20, 4, 4, generator=torch.Generator().manual_seed(3)) * 0.4 + 0.55
    valid = torch.ones_like(cost, dtype=torch.bool)
    valid[:, 0] = False
    spoiled = torch.where(valid, cost, torch.zeros_like(cost))
    assert torch.equal(richness.rescale(cost, valid)[valid], richness.rescale(spoiled, valid)[valid])
    even = torch.full((2, 4, 4), 0.7)
    assert torch.equal(richness.rescale(even, torch.ones_like(even, dtype=torch.bool)), even)


def test_the_inverted_sign_orders_patches_the_other_way(grades: torch.Tensor) -> None:
    straight, inverted = RICHNESS["dwt_entropy"](grades), RICHNESS["inverted_dwt_entropy"](grades)
    assert straight.argsort().tolist() == inverted.argsort(descending=True).tolist()


def test_the_learned_measure_finds_poor_what_a_quarter_of_the_resolution_tells() -> None:
    """A slope is foretold by its small picture, a checkerboard of single pixels is not, though it varies no more."""
    slope = torch.linspace(0, 1, 32).expand(1, 32, 32)
    checks = slope.std() * (2.0 * (torch.arange(32)[:, None] + torch.arange(32)[None]).remainder(2) - 1)[None] + 0.5
    poor, rich = RICHNESS["learned"](torch.cat([slope, checks])).tolist()
    assert poor > 2 * rich


@pytest.mark.parametrize("count", [1, 2, 19, 21, 4096, 100_003])
@pytest.mark.parametrize("shares", [(0.05, 0.95), (0.0, 0.5, 1.0), (0.3,)])
def test_quantiles_are_torch_s_to_the_last_bit(count: int, shares: tuple[float, ...]) -> None:
    draw = torch.rand(count, generator=torch.Generator().manual_seed(count))
    for values in (draw, draw.half().float(), (draw > 0.9).float()):
        assert torch.equal(
            richness._quantiles(values, torch.tensor(shares)), torch.quantile(values, torch.tensor(shares))
        )


@pytest.mark.parametrize("count", [2**24 + 1, 17_000_003, 20_000_000])
def test_a_class_may_have_more_cells_than_torch_takes_quantiles_of(count: int) -> None:
    cost = torch.linspace(0.5, 0.9, count).view(1, 1, count)
    found = richness.rescale(cost, torch.ones_like(cost, dtype=torch.bool)).flatten()
    assert (found[0], found[-1]) == (pytest.approx(0.05), 1.0)
    assert found[count // 2] == pytest.approx(0.525, abs=1e-4)
    assert float((found < 0.0501).float().mean()) == pytest.approx(0.05, abs=1e-3)
