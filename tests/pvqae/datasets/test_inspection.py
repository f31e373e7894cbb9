from pathlib import Path

import numpy as np
import pytest

from pvqae.core import files
from pvqae.datasets import inspection
from pvqae.datasets.inspection import Facts, _Statistics
from pvqae.samples import images

NOISE = np.repeat(np.random.default_rng(0).random((20, 30, 1), dtype=np.float32), 3, axis=2)


def test_statistics_of_known_pictures() -> None:
    flat = np.full((4, 5, 3), 0.25, dtype=np.float32)
    assert inspection.statistics(flat) == _Statistics(0.25, 0.0, 0.0)
    assert inspection.statistics(flat[:1, :1]) == _Statistics(0.25, 0.0, 0.0)
    stripes = np.zeros((4, 6, 3), dtype=np.float32)
    stripes[:, ::2] = 1
    assert inspection.statistics(stripes) == _Statistics(0.5, 0.5, 0.5)


def test_a_soft_picture_is_less_sharp_at_equal_contrast() -> None:
    soft = (NOISE + np.roll(NOISE, 1, axis=0) + np.roll(NOISE, 1, axis=1)) / 3
    soft = soft / soft.std() * NOISE.std()
    assert inspection.statistics(soft).sharpness < 0.9 * inspection.statistics(NOISE).sharpness


def test_facts_or_a_reason_in_order(tmp_path: Path) -> None:
    images.write(tmp_path / "a.png", NOISE, channels=1)
    (tmp_path / "b.png").write_bytes(b"x")
    good, bad, again = inspection.inspect_all([Path("a.png"), Path("b.png"), Path("a.png")], tmp_path)
    assert isinstance(good, Facts)
    assert good == again
    assert good.sha256 == files.digest(tmp_path / "a.png")
    assert good.header == images.Header(30, 20, 1, 8, "")
    assert good.statistics.mean == pytest.approx(NOISE.mean(), abs=2e-3)
    assert isinstance(bad, str)
    assert bad.startswith("b.png: expected a readable image")
