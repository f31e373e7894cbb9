"""What earlier code wrote still works: bundles with their scores, params.yaml, classes.yaml and dvc.lock of 0.1.

Made by commit f5f3d48 with `python -m flows train --set data.categories=[brick] --set image.size=64 --set
model.width=16 --set train.steps=30 --set prior.steps=10 --set memory.codes=64 --set calibration.folds=2 --set
evaluation.pictures=1`; the scores are what that commit gave for the pictures below. `format_2` is of commit 4992469,
with the settings of tests/end_to_end/test_promotion.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from flows.adapters import dvc_command
from pvqae.core import config
from pvqae.inference import bundle, formats
from pvqae.samples import classes

HERE = Path(__file__).with_name("version_0_1")


def _picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :120]
    values = 0.5 + 0.2 * np.sin(x / (4 + seed)) * np.cos(y / 7) + rng.normal(0, 0.02, (96, 120))
    return values[..., None].repeat(3, 2).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("stored", [HERE, HERE.with_name("format_2")], ids=lambda folder: folder.name)
def test_a_stored_bundle_gives_its_scores_also_converted(stored: Path, tmp_path: Path) -> None:
    formats.convert(bundle.read(stored / "bundle"), tmp_path / "today", bundle.REPAIR)
    assert json.loads((tmp_path / "today" / "config.json").read_text())["format"] == formats.CURRENT
    detector, today = bundle.load(stored / "bundle"), bundle.load(tmp_path / "today")
    assert detector.threshold == today.threshold
    for seed, expected in enumerate(json.loads((stored / "scores.json").read_text())):
        found = detector.score(_picture(seed))
        # Processors differ in the last bits of a convolution; on one machine the scores were equal to every digit.
        assert found.image_score == pytest.approx(expected["score"], rel=2e-3)
        assert float(found.anomaly_map.max()) == pytest.approx(expected["peak"], rel=2e-3)
        same = today.score(_picture(seed))
        assert (same.image_score, same.parts) == (found.image_score, found.parts)
        assert np.array_equal(same.anomaly_map, found.anomaly_map)
        assert detector.pixel_threshold is detector.marks(found) is detector.mask(found) is None
        assert found.parts == pytest.approx(expected["parts"], rel=2e-3, abs=1e-2)


def test_params_of_0_1_are_read() -> None:
    params = config.load(HERE / "params.yaml")
    assert (params.data.categories, params.image.size, params.train.steps) == (("brick",), 64, 30)


def test_classes_and_the_lock_file_of_0_1_are_read() -> None:
    assert list(classes.read(HERE / "classes.yaml", "demo").classes) == ["brick"]
    assert "train@brick" in dvc_command.parse((HERE / "dvc.lock").read_text())["stages"]
