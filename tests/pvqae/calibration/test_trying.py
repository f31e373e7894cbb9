"""What calibration tries its synthetic defects on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pvqae.calibration import calibrate
from pvqae.core import config
from pvqae.samples import geometry, images


@pytest.mark.parametrize(("aspect", "shape"), [("tile", (120, 120, 3)), ("auto", (120, 960, 3))])
def test_of_a_tiled_line_scan_a_square_is_tried_at_the_same_scale(
    tmp_path: Path, aspect: str, shape: tuple[int, ...]
) -> None:
    scan = np.random.default_rng(0).integers(0, 256, (120, 960, 1)).repeat(3, axis=2).astype(np.float32) / 255
    images.write(tmp_path / "a.png", scan)
    image = config.Image.model_validate({"size": 64, "aspect": aspect, "tiles": 2})
    rows = pd.DataFrame({"sample_id": ["a"], "path": ["a.png"]})
    [(sample_id, pixels)] = calibrate._pictures(rows, tmp_path, image)
    assert (sample_id, pixels.shape) == ("a", shape)
    assert geometry.scale_of(pixels.shape[:2], image) == geometry.scale_of(scan.shape[:2], image)
    if aspect == "tile":
        np.testing.assert_allclose(pixels, scan[:, 420:540])
