from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from flows.experiments import limits
from flows.experiments.limits import _CONTRAST, _judged, _Smallest, _spot
from pvqae.calibration import thresholds
from pvqae.core import config
from pvqae.inference.bundle import Detector
from pvqae.model.backbones import Spec
from pvqae.samples import images
from tests.bench import holding

ROWS = pd.DataFrame({"width": [1600, 1600, 900], "height": [600, 600, 600]})


def spec(levels: int) -> Spec:
    return Spec((8,) * levels, (8,), "features", frozen=True)


@pytest.mark.parametrize(
    ("image", "levels", "fusion", "pixels", "apart"),
    [
        ({"aspect": "squash"}, 3, "recon", 40.0, 47.1),  # 8 model pixels, of which one is 5 of the image
        ({"aspect": "letterbox"}, 3, "recon", 40.0, 47.1),
        ({"aspect": "tile"}, 3, "recon", 15.0, 17.7),
        ({"aspect": "tile", "tiles": 2}, 3, "recon", 8.6, 10.1),
        ({"aspect": "tile", "tiles": 9}, 3, "recon", 8.0, 9.4),  # not finer than the image is
        ({"aspect": "tile", "tiles": 9}, 4, "gated", 4.0, 9.4),
        ({"aspect": "tile", "tiles": 9}, 3, "prior", 32.0, 32.0),
    ],
)
def test_the_geometry_is_in_pixels_of_the_image(
    image: dict[str, Any], levels: int, fusion: str, pixels: float, apart: float
) -> None:
    found = thresholds.smallest(
        ROWS, spec(levels), config.Image(size=320, **image), config.Score(fusion=fusion, blur=4)
    )
    assert (found["pixels"], found["apart"]) == (pixels, apart)
    assert found["image"] == [1600, 600]
    assert f"about {pixels} pixels of an image of 1600 x 600" in thresholds.sentence(found)


@pytest.mark.parametrize(
    ("weights", "pixels"), [({"place": 1.0}, 40.0), ({"stride16": 1.0, "place": 1.0}, 40.0), ({"stride16": 1.0}, 80.0)]
)
def test_the_finest_memory_of_the_image_score_decides(weights: dict[str, float], pixels: float) -> None:
    score = config.Score(image=weights)
    assert thresholds.smallest(ROWS, spec(3), config.Image(size=320, aspect="squash"), score)["pixels"] == pixels


@pytest.mark.parametrize(
    ("shape", "aspect", "tiles"),
    [((16384, 2048), "auto", 9), ((16384, 2048), "tile", 9), ((600, 600), "squash", None), ((400, 400), "tile", None)],
)
def test_a_coarse_scale_names_the_tiles_that_see_every_pixel(
    shape: tuple[int, int], aspect: str, tiles: int | None
) -> None:
    rows, params = pd.DataFrame({"width": shape[:1], "height": shape[1:]}), config.Image(size=320, aspect=aspect)  # type: ignore[arg-type]
    found = thresholds.smallest(rows, spec(3), params, config.Score())
    assert found["tiles"] == tiles
    assert (f"image.tiles={tiles} sees every pixel" in thresholds.sentence(found)) == (tiles is not None)
    if tiles:
        finer = config.Image(size=320, aspect="tile", tiles=tiles)
        assert thresholds.smallest(rows, spec(3), finer, config.Score())["pixels"] == 8
        coarser = config.Image(size=320, aspect="tile", tiles=tiles - 1)
        assert thresholds.smallest(rows, spec(3), coarser, config.Score())["pixels"] > 8


def test_a_blur_narrower_than_a_cell_keeps_nothing_apart() -> None:
    found = thresholds.smallest(ROWS, spec(3), config.Image(size=320, aspect="squash"), config.Score(blur=2))
    assert found["apart"] == found["pixels"] == 40.0


@pytest.mark.parametrize("diameter", [1.0, 4.0, 21.0])
def test_a_spot_has_its_diameter_its_contrast_and_one_place(diameter: float) -> None:
    picture = np.full((100, 120, 3), 0.6, dtype=np.float32)
    away = (picture - _spot(picture, diameter, "name"))[..., 0]
    assert away.sum() / _CONTRAST == pytest.approx(np.pi * (diameter / 2) ** 2, rel=0.05 if diameter > 2 else 0.6)
    assert away.max() <= _CONTRAST + 1e-6
    rows, columns = np.nonzero(away > 0)
    middle = np.array([rows.mean(), columns.mean()])
    large = np.nonzero((picture - _spot(picture, 30, "name"))[..., 0] > 0)
    np.testing.assert_allclose(middle, [large[0].mean(), large[1].mean()], atol=1)


def test_the_smallest_is_the_last_before_any_falls_below() -> None:
    shares = {16.0: 1.0, 8.0: 0.9, 4.0: 0.5, 2.0: 0.95}
    geometry = {"pixels": 4.0, "apart": 5.0, "image": [100, 100], "scale": 1.0}
    assert _Smallest(10, 0, shares, geometry).diameter == 8.0
    assert "spots from 8.0 pixels on" in str(_Smallest(10, 0, shares, geometry))
    assert _Smallest(10, 0, {16.0: 0.5}, geometry).diameter is None
    assert "none of these sizes" in str(_Smallest(10, 0, {16.0: 0.5}, geometry))


def test_normals_above_the_threshold_are_not_spoilt_further() -> None:
    """A detector that sees darkness: the share of dark pixels."""
    seen: list[float] = []

    def score(picture: np.ndarray) -> SimpleNamespace:
        seen.append(float((picture < 0.5).sum()))
        return SimpleNamespace(image_score=seen[-1])

    detector = cast(Detector, SimpleNamespace(score=score, threshold=300.0))
    pictures = [("bright", np.full((50, 50, 3), 0.8)), ("dark", np.full((50, 50, 3), 0.2))]
    rows = list(_judged(detector, iter(pictures), [20.0, 5.0]))
    assert rows == [{"normal": False, 20.0: True, 5.0: False}, {"normal": True}]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_line_has_its_width_and_contrast(bits: int, tmp_path: Path) -> None:
    surface = np.full((200, 300), 0.6, dtype=np.float32)  # a whole number in 8 and in 16 bit
    for width in (1.0, 3.0, 12.0):
        line = limits.with_hairline(surface, width, 0.2, np.random.default_rng(1))
        limits.write_scan(tmp_path / "line.png", line, bits)
        away = (surface - images.read(tmp_path / "line.png")[..., 0]) / surface
        assert away.max() == pytest.approx(0.2, abs=0.006)
        # An area is width times length, and the length is that of every width.
        length = away.sum() / 0.2 / width
        assert 90 < length < 165


def test_scans_of_a_seed_share_lamp_and_stripes_alone() -> None:
    one, other, lamp = (limits.made_scan(seed, name, (256, 64)) for seed, name in ((0, "a"), (0, "b"), (1, "a")))
    assert np.corrcoef(one.mean(1), other.mean(1))[0, 1] > 0.99 > 0.9 > np.corrcoef(one[20], other[20])[0, 1]
    assert abs(one - lamp).max() > 0.01
    np.testing.assert_array_equal(one, limits.made_scan(0, "a", (256, 64)))


@pytest.mark.integration
def test_hairlines_run_quickly_and_print_every_width(tmp_path: Path) -> None:
    """Through all of it: made, learnt from, judged, and one larger image in a process of its own."""
    params = config.load(
        holding.PROJECT / "params.yaml",
        ("train.steps=0", "image.aspect=tile", "image.tiles=64", *limits.QUICK_HAIRLINES.overrides),
    )
    found = limits.hairlines(params, limits.QUICK_HAIRLINES, 16)
    assert found["table"][["width", "contrast"]].values.tolist() == [[8, 0.3]]
    assert found["table"]["auroc"].between(0, 1).all()
    assert found["whole_views"] == 3 * 7
    assert found["whole_megabytes"] > 100
    page = limits.hairlines_page({16: found}, limits.QUICK_HAIRLINES)
    assert "| 16 bit, width | contrast 30% |\n|---|---|\n| 8 px | " in page
    assert "320 x 128 in 21 views" in page
