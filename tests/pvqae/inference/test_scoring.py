import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.inference import scoring
from pvqae.inference.measures import STRIDES, measure, memory_names
from pvqae.inference.scoring import FUSION_MAP, FUSIONS, PARTS, RECON, SCALES, Readout, Scored, Scorer
from pvqae.samples import geometry, images

Picture = Callable[..., np.ndarray]
LYING, STANDING = (50, 125), (125, 50)
PART = st.floats(-10, 50)  # image scores of parts


def fused(name: str, recon: float, prior: float, product: float) -> float:
    return FUSIONS[name]({"s_recon": recon, "s_prior": prior, "product": product}.__getitem__)


@pytest.mark.parametrize("name", FUSIONS)
@given(recon=PART, prior=PART, product=PART)
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


@given(recon=PART, prior=PART)
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
    assert scoring.top_mean(values.view(2, 4), share) == pytest.approx(expected)
    assert scoring.top_mean(values, share) == scoring.top_mean(values.flip(0), share)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_the_blur_is_a_gaussian(sigma: float) -> None:
    x = torch.rand(20, 33, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(x.double().numpy(), sigma, mode="mirror", radius=max(1, round(3 * sigma)))
    torch.testing.assert_close(scoring.blur(x, sigma).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (8, 8)])
def test_the_blur_keeps_shape_and_level_of_any_map(shape: tuple[int, int]) -> None:
    found = scoring.blur(torch.full(shape, 0.7), 4.0)
    torch.testing.assert_close(found, torch.full(shape, 0.7))


def dented(image: np.ndarray, row: int, column: int, side: int = 14) -> np.ndarray:
    changed = image.copy()
    changed[row : row + side, column : column + side] = 0.02
    return changed


def reading(scorer: Scorer, aspect: str) -> Scorer:
    return replace(scorer, image=config.Image(size=128, aspect=aspect))  # type: ignore[arg-type]


def equal(one: Scored, other: Scored) -> bool:
    maps = [np.array_equal(one.part_maps[part], other.part_maps[part]) for part in PARTS]
    return one.image_score == other.image_score and one.parts == other.parts and all(maps)


def test_the_same_image_gets_the_same_score(scorer: Scorer, picture: Picture) -> None:
    assert equal(scorer.one(picture(50)), scorer.one(picture(50)))
    assert not equal(scorer.one(picture(50)), scorer.one(picture(51)))


def test_neither_order_nor_company_matters(scorer: Scorer, picture: Picture, tmp_path: Path) -> None:
    for index in range(3):
        images.write(tmp_path / f"{index}.png", picture(60 + index))
    names = [f"{index}.png" for index in range(3)]
    there = {s.sample_id: s for s in scorer.many(((n, n) for n in names), tmp_path)}
    back = {s.sample_id: s for s in scorer.many((n, tmp_path / n) for n in reversed(names))}
    assert list(there) == names
    assert all(equal(there[name], back[name]) for name in names)


def test_threads_that_score_at_once_get_their_own_scores(scorer: Scorer, picture: Picture) -> None:
    pictures = [picture(80 + index) for index in range(8)]
    expected = [scorer.one(one) for one in pictures]
    with ThreadPoolExecutor(3) as pool:
        assert all(map(equal, pool.map(scorer.one, pictures), expected))


def test_a_result_has_every_part_in_the_canvas_size(scorer: Scorer, picture: Picture) -> None:
    image = picture(70)
    scored = scorer.one(image, "me")
    assert scored.sample_id == "me"
    assert scored.parts.keys() == scored.part_maps.keys() == set(PARTS)
    assert scored.anomaly_map.dtype == np.float32
    assert {m.shape for m in (scored.anomaly_map, *scored.part_maps.values())} == {(128, 128)}
    assert scored.levels.shape == scored.expected_levels.shape == (4, 4)
    assert {*scored.levels.flat, *scored.expected_levels.flat} <= {0, 1, 2}
    np.testing.assert_array_equal(scored.picture, np.rint(image * 255).astype(np.uint8))


def test_a_dent_raises_the_score_and_the_map_where_it_is(scorer: Scorer, picture: Picture) -> None:
    normal, defect = scorer.one(picture(71)), scorer.one(dented(picture(71), 84, 20))
    assert defect.image_score > normal.image_score + 1
    assert defect.parts["s_recon"] > normal.parts["s_recon"]
    row, column = np.unravel_index(defect.anomaly_map.argmax(), defect.anomaly_map.shape)
    assert 70 < row < 112
    assert 6 < column < 48


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("recon", RECON)
def test_every_named_choice_gives_finite_scores_and_maps(
    scorer: Scorer, picture: Picture, fusion: str, recon: str
) -> None:
    for scale in SCALES:
        score = config.Score(fusion=fusion, recon=recon, image_scale=scale, map_scale=scale)
        scored = replace(scorer, score=score).one(picture(72))
        assert np.isfinite([scored.image_score, *scored.parts.values()]).all()
        assert all(np.isfinite(m).all() for m in scored.part_maps.values())
        assert scored.image_score == FUSIONS[fusion](scored.parts.__getitem__)


def test_a_memory_counts_as_much_as_its_weight(scorer: Scorer, picture: Picture) -> None:
    reader = replace(scorer, score=config.Score(recon="memory"))
    raw = reader.measured(picture(73))[1]
    one, two, both = (
        reader.recon_map(raw, Readout(weights, "global"))
        for weights in ({"joint": 1.0}, {"stride8": 1.0}, {"joint": 3.0, "stride8": 0.5})
    )
    torch.testing.assert_close(both, 3 * one + 0.5 * two)


@pytest.mark.parametrize("weights", [{"stride4": 1.0}, {"stride8": 1.0, "stride4": 2.0}])
def test_a_memory_that_the_backbone_has_nothing_for_counts_nothing(scorer: Scorer, weights: dict[str, float]) -> None:
    backbone = scorer.networks.backbone
    if "stride8" in weights:
        assert memory_names(backbone, weights) == ("stride8",)
    else:
        with pytest.raises(ConfigError, match="expected a weight for some of stride32, stride16, stride8, joint"):
            memory_names(backbone, {"joint": 1.0}, weights)


def test_training_normals_lie_around_zero(scorer: Scorer, picture: Picture) -> None:
    scores = [scorer.one(picture(100 + index)).parts["s_prior"] for index in range(6)]
    assert abs(np.mean(scores)) < 3


@pytest.mark.parametrize("shape", [LYING, STANDING])
def test_a_letterboxed_image_has_a_map_of_its_own_shape(
    scorer: Scorer, picture: Picture, shape: tuple[int, int]
) -> None:
    scored = scorer.one(picture(80, *shape))
    canvas = tuple(round(128 * side / 125) for side in shape)
    assert scored.anomaly_map.shape == canvas
    assert scored.picture.shape == (*canvas, 3)
    assert np.isfinite([scored.image_score, *scored.parts.values()]).all()
    assert all(np.isfinite(m).all() and m.shape == canvas for m in scored.part_maps.values())
    padding = np.zeros((4, 4), dtype=bool)
    padding[[0, 3]] = True
    if shape == STANDING:
        padding = padding.T
    np.testing.assert_array_equal(scored.levels == -1, padding)
    np.testing.assert_array_equal(scored.expected_levels == -1, padding)


@pytest.mark.parametrize("recon", RECON)
@pytest.mark.parametrize("shape", [LYING, STANDING])
def test_what_is_measured_on_padding_counts_nowhere(
    scorer: Scorer, picture: Picture, shape: tuple[int, int], recon: str
) -> None:
    chosen = replace(scorer, score=config.Score(recon=recon))
    canvas = geometry.canvas(picture(81, *shape), scorer.image)
    (view,) = canvas.views
    features = scorer.networks.backbone(torch.from_numpy(view.pixels)[None])
    raw = measure(scorer.networks, features, torch.from_numpy(view.valid)[None])
    assert all(not valid.all() for valid in raw.valid.values())
    maps = {name: torch.where(raw.valid[name], x, torch.full_like(x, 1e4)) for name, x in raw.maps.items()}
    plain, spoiled = (chosen.finish(some, canvas, "") for some in (raw, replace(raw, maps=maps)))
    assert equal(plain, spoiled)
    image_cells = int(raw.valid["stride8"].sum())
    assert {int(chosen.part_map(raw, chosen.for_image, name)[raw.cells].numel()) for name in PARTS} == {image_cells}


def test_features_deep_in_padding_reach_no_distance_to_the_memory(scorer: Scorer, picture: Picture) -> None:
    (view,) = geometry.canvas(picture(82, *LYING), scorer.image).views
    valid = torch.from_numpy(view.valid)[None]
    features = scorer.networks.backbone(torch.from_numpy(view.pixels)[None])
    plain = measure(scorer.networks, features, valid)
    levels = [
        torch.where(F.max_pool2d(plain.valid[name][:, None].float(), 3, 1, 1) > 0, x, torch.full_like(x, 50.0))
        for name, x in zip(STRIDES, features.levels, strict=False)
    ]
    spoiled = measure(scorer.networks, features._replace(levels=levels), valid)
    for name in STRIDES[:3]:
        inside = plain.valid[name]
        assert torch.equal(plain.maps[name][inside], spoiled.maps[name][inside])


def test_an_extremely_thin_image_is_scored(scorer: Scorer, picture: Picture) -> None:
    scored = scorer.one(picture(83, 10, 600))
    assert np.isfinite(scored.image_score)
    assert scored.anomaly_map.shape == (2, 128)


def test_tiles_cover_the_image_and_a_defect_shows_in_its_tile_only(scorer: Scorer, picture: Picture) -> None:
    tiles, image = reading(scorer, "tile"), picture(84, 128, 320)
    normal, defect = tiles.one(image), tiles.one(dented(image, 50, 270))
    assert normal.anomaly_map.shape == normal.picture.shape[:2] == (128, 320)
    assert normal.levels.shape == (4, 10)
    assert normal.levels.min() >= 0
    risen = defect.anomaly_map - normal.anomaly_map
    assert risen[:, 250:].max() > 1
    np.testing.assert_allclose(risen[:, :150], 0, atol=1e-5)
    assert defect.image_score > normal.image_score


def test_one_tile_is_the_plain_image(scorer: Scorer, picture: Picture) -> None:
    assert equal(reading(scorer, "tile").one(picture(85)), reading(scorer, "squash").one(picture(85)))
