"""The pixel threshold and what it marks on real photographs: bottle of MVTec AD, a small detector, no training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pvqae.calibration import fitting, thresholds
from pvqae.core import config
from pvqae.evaluation.metrics import PixelMetrics
from pvqae.features.examples import prepare
from pvqae.inference.measures import Allocator, Networks
from pvqae.inference.scoring import Scored, Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.prior.prior import BudgetPrior
from pvqae.samples import geometry, images

PARAMS = config.Params(
    image=config.Image(size=160), model=config.Model(width=8, code_dim=4, codes=16), memory=config.Memory(codes=256)
)
LEARN, CALIBRATE, TRIED = 24, 24, 12  # images


@pytest.fixture(scope="module")
def bottle(real_dataset: Callable[[str, str], Path]) -> Path:
    return real_dataset("mvtec", "bottle") / "bottle"


@pytest.fixture(scope="module")
def fitted(bottle: Path) -> Scorer:
    files = sorted((bottle / "train/good").iterdir())[:LEARN]
    frame = pd.DataFrame({"path": [file.name for file in files], "group_id": [file.name for file in files]})
    backbone = backbones.make(PARAMS.model).eval()
    autoencoder = Autoencoder(PARAMS.model, backbone.spec).eval().requires_grad_(False)
    learned = BudgetPrior((5, 5), 3, 16).eval().requires_grad_(False)
    examples = prepare(frame, bottle / "train/good", PARAMS.image, backbone, "none")
    found = Networks(backbone, Allocator(autoencoder, learned, PARAMS.score.prior), {}, None)
    groups = fitting.group_numbers(frame, examples)
    return fitting.fit(found, examples, groups, PARAMS, "full")


def _scored(fitted: Scorer, files: list[Path]) -> list[Scored]:
    return [fitted.one(images.read(file), file.stem) for file in files]


def test_defects_are_marked_where_they_are_and_good_parts_hardly(fitted: Scorer, bottle: Path) -> None:
    files = sorted((bottle / "train/good").iterdir())[-CALIBRATE:]
    unseen = [one.anomaly_map for one in _scored(fitted, files)]
    curves = [thresholds.area_curve(one) for one in unseen]
    card = thresholds.pixel_card(curves, [file.name for file in files], 0.001, sum(one.size for one in unseen))
    limit = card["threshold"]
    assert np.mean([(one > limit).mean() for one in unseen]) <= card["area"] + 1e-12 <= 0.001 + 2e-12
    spoilt = _scored(fitted, sorted((bottle / "test/broken_large").iterdir())[:TRIED])
    good = _scored(fitted, sorted((bottle / "test/good").iterdir())[:TRIED])
    areas = np.array([(one.anomaly_map > limit).mean() for one in good])
    assert np.median(areas) < 0.001 < 0.02 < np.mean([(one.anomaly_map > limit).mean() for one in spoilt])
    assert (areas > 0.01).sum() <= 2  # one of these twelve looks odd to so small a detector

    pixels, found = PixelMetrics(), 0
    for one in spoilt:
        mask = images.read_mask(bottle / "ground_truth/broken_large" / f"{one.sample_id}_mask.png")
        assert one.canvas.image_shape == mask.shape
        placed = geometry.resize_mask(mask, *one.anomaly_map.shape)
        pixels.add(one.anomaly_map, placed)
        pixels.compare(one.anomaly_map > limit, placed)
        first = geometry.marks(one.anomaly_map, limit, mask.shape)["regions"][0]
        found += mask[first["y"] : first["y"] + first["height"], first["x"] : first["x"] + first["width"]].any()
    assert found == len(spoilt)  # the region with the highest value touches the labelled defect
    f1, best, narrow, wide = pixels.f1(), pixels.f1_max(), pixels.aupro(0.05), pixels.aupro()
    assert f1 is not None
    assert best is not None
    assert narrow is not None
    assert wide is not None
    assert 0.1 < f1 <= best + 1e-3
    assert 0 < narrow < wide
