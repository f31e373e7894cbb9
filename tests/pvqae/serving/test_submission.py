"""What the server of MVTec AD 2 gets, with a detector that is a formula, read by another library."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pvqae.core.errors import ConfigError, DataError
from pvqae.samples import images
from pvqae.serving import submission
from tests.pvqae.serving.test_batch import MARKING, Detector


@pytest.fixture
def can(tmp_path: Path) -> Path:
    for name in ("test_private/000_regular.png", "test_private_mixed/000_shift_1.png", "test_public/good/000.png"):
        picture = np.full((20, 30, 3), 0.2, dtype=np.float32)
        picture[3:7, 10:20] = 0.9
        images.write(tmp_path / "can" / name, picture)
    return tmp_path / "can"


def test_a_map_and_a_mask_of_every_private_image(can: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert submission.write(Detector(card=MARKING), can, out) == 2  # type: ignore[arg-type]
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert names == {
        "anomaly_images/can/test_private/000_regular.tiff",
        "anomaly_images/can/test_private_mixed/000_shift_1.tiff",
        "anomaly_images_thresholded/can/test_private/000_regular.png",
        "anomaly_images_thresholded/can/test_private_mixed/000_shift_1.png",
    }
    values = tifffile.imread(out / "anomaly_images/can/test_private/000_regular.tiff")
    assert (values.dtype, values.shape) == (np.float16, (20, 30))
    mask = images.read(out / "anomaly_images_thresholded/can/test_private/000_regular.png")[..., 0]
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(mask > 0, values > 0.7)
    assert mask.sum() == 40


def test_a_bundle_of_another_class_is_warned_of(can: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for category in ("can", "vial"):
        detector = Detector(card=MARKING, config={"category": category, "model": {"levels": 3}})
        submission.write(detector, can, tmp_path / "out")  # type: ignore[arg-type]
        warned = "warning: the images are of the class can, the bundle is of vial" in capsys.readouterr().err
        assert warned == (category == "vial")


def test_values_beyond_16_bit_stay_finite(can: Path, tmp_path: Path) -> None:
    class Steep(Detector):
        def score(self, pixels: images.Floats, sample_id: str = "") -> object:
            scored = super().score(pixels, sample_id)
            scored.anomaly_map = scored.anomaly_map * 1e6
            return scored

    submission.write(Steep(card=MARKING), can, tmp_path / "out")  # type: ignore[arg-type]
    assert np.isfinite(tifffile.imread(tmp_path / "out/anomaly_images/can/test_private/000_regular.tiff")).all()


def test_another_folder_and_another_bundle_are_refused(can: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a class of MVTec AD 2 with images in test_private/"):
        submission.write(Detector(card=MARKING), can / "test_public", tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no pixel threshold"):
        submission.write(Detector(), can, tmp_path / "out")  # type: ignore[arg-type]
