"""What drift is judged by: figures of one image, and profile.json, the figures of a class's trusted normals.

profile.json is part of the bundle, so that drift can be judged anywhere. It has one row per normal that calibration
judged: its group as a number, the statistics of `measure`, its image score by a fit that had not seen it, and the
shares of the resolution levels that the shipped fit spends on it, where a network was trained.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.core.errors import IntegrityError
from pvqae.core.files import Sealed
from pvqae.core.progress import track
from pvqae.datasets import inspection
from pvqae.inference.bundle import REPAIR
from pvqae.inference.measures import spent
from pvqae.inference.scoring import Scorer, stitch_levels
from pvqae.samples import geometry, images

if TYPE_CHECKING:
    from pvqae.features.examples import Examples

FILE = "profile.json"
GROUP = "group"
SCORE = "image_score"
STATISTICS = ("brightness", "contrast", "sharpness", "colour", "megapixels")
_MOST = 1000  # rows; more make the limits no sharper than the parts of a batch do


def measure(image: images.Floats) -> dict[str, float]:
    """Return the statistics of an image (H0, W0, 3) in [0, 1], six digits.

    brightness and contrast: mean and deviation of the grey levels; sharpness: mean step between neighbours over the
    contrast, so that an exposure does not look like a focus; colour: mean distance of the highest and the lowest
    channel; megapixels.
    """
    grey = inspection.statistics(image)
    return {
        "brightness": grey.mean,
        "contrast": grey.std,
        "sharpness": round(grey.sharpness / grey.std, 6) if grey.std else 0.0,
        "colour": round(float(np.ptp(image, axis=2).mean(dtype=np.float64)), 6),
        "megapixels": round(image.shape[0] * image.shape[1] / 1e6, 6),
    }


def level_shares(levels: NDArray[np.int64], count: int) -> dict[str, float]:
    """Return the share of the cells (any shape, -1 padding) of each of `count` levels, coarsest first, as features."""
    cells = levels[levels >= 0]
    counts = np.bincount(cells, minlength=count) / max(1, len(cells))
    return {f"level_{r}": round(float(share), 6) for r, share in enumerate(counts)}


def flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of scores without nesting, as CSV and drift need it."""
    shares = {f"level_{r}": share for r, share in enumerate(row["level_shares"] or ())}
    return {**row, **(row["parts"] or {}), **shares, **(row["statistics"] or {})}


def build(scorer: Scorer, examples: "Examples", rows: pd.DataFrame, judged: pd.DataFrame, root: Path) -> dict[str, Any]:
    """Return the content of profile.json.

    `judged`: sample_id and score; `examples`: the views of all `rows`, paths below `root`.
    """
    scores = dict(zip(judged["sample_id"], judged["score"], strict=True))
    chosen = [number for number in _whole_groups(rows) if rows["sample_id"].iloc[number] in scores]
    table = []
    for number in track(chosen, "profile", total=len(chosen)):
        row = rows.iloc[number]
        table.append(_features(scorer, examples, number, images.read(row["path"], root, scorer.image.bits)))
        table[-1][SCORE] = float(f"{scores[row['sample_id']]:.6g}")
    frame = pd.DataFrame(table)
    frame[GROUP] = pd.factorize(rows["group_id"].iloc[chosen])[0]
    return {"columns": {str(name): frame[name].tolist() for name in frame.columns}}


def _features(scorer: Scorer, examples: "Examples", number: int, pixels: images.Floats) -> dict[str, float]:
    if (allocator := scorer.networks.allocator) is None:
        return measure(pixels)
    batch = examples.batch((examples.rows == number).nonzero()[:, 0])
    kept = batch.features if batch.features is not None else scorer.networks.backbone(batch.images)
    levels = stitch_levels(geometry.canvas(pixels, scorer.image), spent(allocator.autoencoder, kept, batch.valid))
    return {**measure(pixels), **level_shares(levels, len(allocator.autoencoder.spec.channels))}


def _whole_groups(rows: pd.DataFrame) -> list[int]:
    """Return the positions of at most about `_MOST` rows: whole groups, in the order of their names' hashes."""
    keys = [hashlib.sha256(str(group).encode()).hexdigest() for group in rows["group_id"]]
    order = sorted(range(len(rows)), key=lambda number: (keys[number], number))
    last = keys[order[min(_MOST, len(order)) - 1]]
    return [number for number in range(len(rows)) if keys[number] <= last]


def read(files: Sealed) -> pd.DataFrame:
    """Return the rows of the profile in a bundle's files, finite numbers. Raises `IntegrityError` if it has none."""
    file = files.folder / FILE
    if FILE not in files.files:
        raise IntegrityError(
            f"{files.folder}: expected {FILE}, the profile of trusted normals, found none; it was made by an older "
            "version: run `python -m flows train` and promote the new one"
        )
    needed = {*STATISTICS, SCORE, GROUP}
    try:
        frame = pd.DataFrame(files.json(FILE, REPAIR)["columns"])
        finite = bool(np.isfinite(frame.to_numpy(dtype=np.float64)).all())
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise IntegrityError(f"{file}: expected columns of numbers, found {error!r}; {REPAIR}") from None
    if needed - set(frame.columns) or not finite:
        raise IntegrityError(f"{file}: expected finite {', '.join(sorted(needed))}; {REPAIR}")
    return frame
