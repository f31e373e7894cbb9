"""The files that the evaluation server of MVTec AD 2 wants: a map and a mask of every image without a published label.

OUT/anomaly_images/CLASS/SPLIT/NAME.tiff holds the map in the image's size as 16 bit floating point, uncompressed, and
OUT/anomaly_images_thresholded/CLASS/SPLIT/NAME.png what the pixel threshold marks, 0 and 255.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pvqae.core.errors import DataError
from pvqae.core.files import make_folder, whole_file
from pvqae.core.progress import tell, track
from pvqae.datasets import layouts, published
from pvqae.inference.bundle import Detector
from pvqae.samples import images
from pvqae.serving import batch

_MOST = float(np.finfo(np.float16).max)


def write(detector: Detector, folder: Path, out: Path) -> int:
    """Score the unlabelled images of a class's `folder` of MVTec AD 2 and write both files of each; return how many.

    Raises `ConfigError` for a bundle without a pixel threshold, and `DataError` where there are no such images, or one
    can't be read: the server takes all of them or nothing.
    """
    batch.check_marks(detector)
    paths = [path for split in published.PRIVATE for path in layouts.pictures(folder / split)]
    if not paths:
        places = " and ".join(f"{split}/" for split in published.PRIVATE)
        raise DataError(
            f"{folder}: expected a class of MVTec AD 2 with images in {places}, found none; give its folder"
        )
    category, learnt = folder.absolute().name, detector.config.get("category")
    if learnt not in (None, category):
        tell(f"warning: the images are of the class {category}, the bundle is of {learnt}; is it the right one?")
    make_folder(out)
    for path in track(paths, "scoring", len(paths)):
        _write(detector, path, category, out)
    return len(paths)


def _write(detector: Detector, path: Path, category: str, out: Path) -> None:
    import tifffile

    scored = detector.score(images.read(path, bits=detector.scorer.image.bits))
    mask = detector.mask(scored)
    assert mask is not None  # `check_marks`
    height, width = mask.shape
    large = Image.fromarray(scored.anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(large), -_MOST, _MOST).astype(np.float16)
    place = Path(category) / path.parent.name / path.stem
    with whole_file((out / "anomaly_images" / place).with_name(f"{path.stem}.tiff")) as part:
        tifffile.imwrite(part, values)
    with whole_file((out / "anomaly_images_thresholded" / place).with_name(f"{path.stem}.png")) as part:
        Image.fromarray(mask.astype(np.uint8) * 255).save(part, "PNG")
