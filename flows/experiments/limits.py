"""Do the thresholds keep their promise? `flows bench calibration C` tries it on the class's own unseen normals.

How small a defect is found? `flows bench smallest C` puts spots of falling size on normals that C has not seen.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pvqae.calibration import thresholds
from pvqae.calibration.thresholds import is_defect, realised_rates
from pvqae.core import config, runtime
from pvqae.core.errors import CalibrationError
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.inference import bundle
from pvqae.inference.bundle import Detector
from pvqae.samples import images, manifest
from pvqae.samples.images import Floats

DRAWS = 200


def unseen_normals(layout: Layout, category: str, method: str) -> pd.DataFrame:
    """Rows of the manifest that the class's shipped fit has not learned from and that are normal."""
    rows = manifest.read(layout.manifest)
    splits = ["calibrate", "test", "gate"] if method == "held_out" else ["test", "gate"]
    keep = (rows["category"] == category) & (rows["label"] == "normal") & rows["split"].isin(splits)
    return rows[keep]


def calibration(layout: Layout, params: config.Params, category: str) -> dict[str, float]:
    """Over seeded random halves of the unseen normals' groups: threshold from one half, false alarms on the other."""
    runtime.apply(runtime.plan(params.compute, 1))
    detector = bundle.load(layout.bundle(category))
    rows = unseen_normals(layout, category, detector.card["method"])
    if rows["group_id"].nunique() < 4:
        raise CalibrationError(f"{category}: expected unseen normals of at least 4 groups, found {len(rows)} images")
    pairs = zip(rows["sample_id"], rows["path"], strict=True)
    scores = np.array([s.image_score for s in track(detector.score_many(pairs, layout.data), "scoring", len(rows))])
    target = params.calibration.false_alarm_rate
    rates = realised_rates(scores, list(rows["group_id"]), target, DRAWS, params.seed)
    low, high = np.quantile(rates, [0.025, 0.975])
    facts = {"n_normals": len(rows), "n_groups": rows["group_id"].nunique(), "target": target, "draws": DRAWS}
    return facts | {"mean": float(rates.mean()), "low": float(low), "high": float(high)}


MOST = 20  # normals
FOUND = 0.9  # share of spots above the threshold
CONTRAST = 0.35  # of the range, against what was there
CELLS = (4.0, 2.83, 2.0, 1.41, 1.0, 0.71, 0.5, 0.35)  # diameters, in cells of the geometry


@dataclass(frozen=True)
class Smallest:
    """`shares`: diameter in pixels of the image → share of the spots above the threshold, largest first."""

    images: int
    left_out: int  # normals that are above the threshold by themselves
    shares: dict[float, float]
    geometry: dict[str, Any]

    @property
    def diameter(self) -> float | None:
        """The smallest of which, and of all larger ones, at least `FOUND` are found; None if not even the largest."""
        found = None
        for diameter, share in self.shares.items():
            if share < FOUND:
                break
            found = diameter
        return found

    def __str__(self) -> str:
        size = "none of these sizes" if self.diameter is None else f"spots from {self.diameter} pixels on"
        table = "\n".join(f"{diameter:>8} {share:>7.0%}" for diameter, share in self.shares.items())
        return (
            f"{thresholds.sentence(self.geometry)}\nmeasured on {self.images} unseen normals ({self.left_out} false "
            f"alarms left out), contrast {CONTRAST:.0%}: {size} at {FOUND:.0%} found\n  pixels   found\n{table}"
        )


def smallest(layout: Layout, params: config.Params, category: str) -> Smallest:
    """Measure it with the class's bundle. Raises `CalibrationError` without unseen normals below the threshold."""
    runtime.apply(runtime.plan(params.compute, 1))
    detector = bundle.load(layout.bundle(category))
    rows = unseen_normals(layout, category, detector.card["method"])
    rows = rows.iloc[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int)] if len(rows) else rows
    scorer = detector.scorer
    geometry = thresholds.smallest(rows, scorer.networks.backbone.spec, scorer.image, scorer.score) if len(rows) else {}
    diameters = [round(cells * geometry["pixels"], 1) for cells in CELLS] if geometry else []
    pictures = (
        (row["sample_id"], images.read(row["path"], layout.data, scorer.image.bits)) for _, row in rows.iterrows()
    )
    table = pd.DataFrame(_judged(detector, track(pictures, "smallest defect", len(rows)), diameters))
    quiet = table[~table["normal"].astype(bool)] if len(table) else table
    if quiet.empty:
        raise CalibrationError(f"{category}: expected unseen normals below the threshold, found none of {len(rows)}")
    shares = {diameter: float(quiet[diameter].mean()) for diameter in diameters}
    return Smallest(len(quiet), len(table) - len(quiet), shares, geometry)


def _judged(
    detector: Detector, pictures: Iterator[tuple[str, Floats]], diameters: list[float]
) -> Iterator[dict[str | float, bool]]:
    """Of each picture, whether it and a spot of each diameter on it are above the threshold."""
    for sample_id, picture in pictures:
        found: dict[str | float, bool] = {"normal": _above(detector, picture)}
        for diameter in () if found["normal"] else diameters:
            found[diameter] = _above(detector, spot(picture, diameter, sample_id))
        yield found


def _above(detector: Detector, picture: Floats) -> bool:
    return bool(is_defect(detector.score(picture).image_score, detector.threshold))


def spot(picture: Floats, diameter: float, name: str) -> Floats:
    """A round spot, darker or brighter than its place by `CONTRAST`; `name` says where, the same for every diameter."""
    height, width, _ = picture.shape
    digest = hashlib.sha256(f"spot/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    row, column = rng.uniform(0.15, 0.85, 2) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    inside = np.clip(diameter / 2 + 0.5 - np.hypot(rows - row, columns - column), 0, 1)[..., None]
    there = float(picture[int(row), int(column)].mean())
    changed = picture + inside * (CONTRAST if there < 0.5 else -CONTRAST)
    spotted: Floats = changed.clip(0, 1).astype(np.float32)
    return spotted
