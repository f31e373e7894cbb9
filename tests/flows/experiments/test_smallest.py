from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from flows.experiments.limits import _CONTRAST, _judged, _Smallest, _spot
from pvqae.calibration import thresholds
from pvqae.core import config
from pvqae.inference.bundle import Detector
from pvqae.model.backbones import Spec

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
