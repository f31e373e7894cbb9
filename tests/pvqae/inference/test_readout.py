import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pvqae.inference import readout
from pvqae.inference.readout import FUSION_MAP, FUSIONS, RECON, Readout
from pvqae.inference.scoring import PARTS

score = st.floats(-10, 50)


def fused(name: str, recon: float, prior: float, product: float) -> float:
    return FUSIONS[name]({"s_recon": recon, "s_prior": prior, "product": product}.__getitem__)


@pytest.mark.parametrize("name", FUSIONS)
@given(recon=score, prior=score, product=score)
def test_a_fusion_is_finite_and_never_falls_where_all_parts_rise(
    name: str, recon: float, prior: float, product: float
) -> None:
    found = fused(name, recon, prior, product)
    assert math.isfinite(found)
    assert fused(name, recon + 1, prior + 1, product + 1) > found


def test_every_fusion_has_a_map_of_a_known_part() -> None:
    assert FUSION_MAP.keys() == FUSIONS.keys()
    assert set(FUSION_MAP.values()) <= set(PARTS)


def test_the_named_parts_stand_for_themselves() -> None:
    assert [fused(name, 1.0, 2.0, 3.0) for name in ("recon", "prior", "product")] == [1.0, 2.0, 3.0]


@given(recon=score, prior=score)
def test_a_gate_never_lowers_the_reconstruction_score_and_adds_little(recon: float, prior: float) -> None:
    found = fused("gated", recon, prior, 0.0)
    assert recon <= found <= recon + 0.25 * max(0.0, prior)
    assert prior > 0 or found == recon


@pytest.mark.parametrize(
    ("name", "expected"),
    [("memory", [4.0, 1.0]), ("decoder", [3.0]), ("both", [4.0, 1.0, 3.0])],
)
def test_the_terms_of_s_recon(name: str, expected: list[float]) -> None:
    maps = {key: torch.tensor(float(i)) for i, key in enumerate(["stride16", "joint", "stride8", "decoder"])}
    use = Readout({"joint": 4.0, "stride8": 0.5, "stride4": 9.0}, "global")
    assert [float(x) for x in use.sum(maps, name)] == expected
    assert RECON.keys() == {"memory", "decoder", "both"}


@pytest.mark.parametrize(("share", "expected"), [(0.25, 7.5), (0.5, 6.5), (1.0, 4.5), (0.001, 8.0)])
def test_the_mean_of_the_highest_share(share: float, expected: float) -> None:
    values = torch.tensor([3.0, 8.0, 1.0, 6.0, 2.0, 5.0, 4.0, 7.0])
    assert readout.top_mean(values.view(2, 4), share) == pytest.approx(expected)
    assert readout.top_mean(values, share) == readout.top_mean(values.flip(0), share)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_the_blur_is_a_gaussian(sigma: float) -> None:
    x = torch.rand(20, 33, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(x.double().numpy(), sigma, mode="mirror", radius=max(1, round(3 * sigma)))
    torch.testing.assert_close(readout.blur(x, sigma).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (8, 8)])
def test_the_blur_keeps_shape_and_level_of_any_map(shape: tuple[int, int]) -> None:
    found = readout.blur(torch.full(shape, 0.7), 4.0)
    torch.testing.assert_close(found, torch.full(shape, 0.7))
