"""Does a bundle keep what its card promises? Measured on the class's own normals that its fit has not seen.

`flows bench calibration C` tries the thresholds; `flows bench smallest C` puts spots of falling size on the normals;
`flows bench few` learns from 1 to 7 normals, from which no card can promise anything.
"""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flows.experiments import trial
from flows.experiments.subjects import Subject
from pvqae.calibration import calibrate, fitting, thresholds
from pvqae.calibration.thresholds import is_defect, realised_rates
from pvqae.core import config, files, runtime
from pvqae.core.errors import CalibrationError
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.core.seeding import numpy_generator
from pvqae.datasets.splits import fraction
from pvqae.features.features import jittered
from pvqae.inference import bundle
from pvqae.inference.bundle import Detector
from pvqae.samples import images, manifest
from pvqae.samples.images import Floats

_DRAWS = 200
_ENTROPIES = ("prior_cross_entropy", "frequency_cross_entropy")  # of a prior, which does not count here
_COPIES = 4  # jittered ones of each image
_MOST = 20  # normals that spots are put on
_FOUND = 0.9  # share of spots above the threshold
_CONTRAST = 0.35  # of the range, against what was there
_CELLS = (4.0, 2.83, 2.0, 1.41, 1.0, 0.71, 0.5, 0.35)  # diameters, in cells of the geometry


def _opened(layout: Layout, params: config.Params, category: str) -> tuple[Detector, pd.DataFrame]:
    """Load the class's bundle and the rows of its normals that the shipped fit has not learned from."""
    runtime.plan(params.compute, 1).apply()
    detector = bundle.load(layout.bundle(category))
    rows = manifest.read(layout.manifest)
    splits = ["calibrate", "test", "gate"] if detector.card["method"] == "held_out" else ["test", "gate"]
    keep = (rows["category"] == category) & (rows["label"] == "normal") & rows["split"].isin(splits)
    return detector, rows[keep]


def calibration(layout: Layout, params: config.Params, category: str) -> dict[str, float]:
    """Take the threshold from one random half of the unseen normals' groups and the false alarms from the other.

    The rates are over many seeded halves. Raises `CalibrationError` with fewer than 4 groups.
    """
    detector, rows = _opened(layout, params, category)
    groups = rows["group_id"].nunique()
    if groups < 4:
        raise CalibrationError(f"{category}: {len(rows)} unseen normals of {groups} groups; at least 4 are needed")
    pairs = zip(rows["sample_id"], rows["path"], strict=True)
    scores = np.array([s.image_score for s in track(detector.score_many(pairs, layout.data), "scoring", len(rows))])
    target = params.calibration.false_alarm_rate
    rates = realised_rates(scores, list(rows["group_id"]), target, _DRAWS, params.seed)
    low, high = np.quantile(rates, [0.025, 0.975])
    facts = {"n_normals": len(rows), "n_groups": groups, "target": target, "draws": _DRAWS}
    return facts | {"mean": float(rates.mean()), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class _Smallest:
    """`shares`: diameter in pixels of the image → share of the spots above the threshold, largest first."""

    images: int
    left_out: int  # normals that are above the threshold by themselves
    shares: dict[float, float]
    geometry: dict[str, Any]

    @property
    def diameter(self) -> float | None:
        """The smallest diameter with, as all larger ones, at least `_FOUND` found; None if not even the largest has."""
        found = None
        for diameter, share in self.shares.items():
            if share < _FOUND:
                break
            found = diameter
        return found

    def __str__(self) -> str:
        size = "none of these sizes" if self.diameter is None else f"spots from {self.diameter} pixels on"
        table = "\n".join(f"{diameter:>8} {share:>7.0%}" for diameter, share in self.shares.items())
        return (
            f"{thresholds.sentence(self.geometry)}\nmeasured on {self.images} unseen normals ({self.left_out} false "
            f"alarms left out), contrast {_CONTRAST:.0%}: {size} at {_FOUND:.0%} found\n  pixels   found\n{table}"
        )


def smallest(layout: Layout, params: config.Params, category: str) -> _Smallest:
    """Measure the smallest spot found. Raises `CalibrationError` without unseen normals below the threshold."""
    detector, rows = _opened(layout, params, category)
    if rows.empty:
        raise CalibrationError(f"{category}: no unseen normals")
    rows = rows.iloc[np.linspace(0, len(rows) - 1, min(_MOST, len(rows))).astype(int)]
    scorer = detector.scorer
    geometry = thresholds.smallest(rows, scorer.networks.backbone.spec, scorer.image, scorer.score)
    diameters = [round(cells * geometry["pixels"], 1) for cells in _CELLS]
    listed = zip(rows["sample_id"], rows["path"], strict=True)
    pictures = ((name, images.read(path, layout.data, scorer.image.bits)) for name, path in listed)
    table = pd.DataFrame(_judged(detector, track(pictures, "smallest defect", len(rows)), diameters))
    quiet = table[~table["normal"].astype(bool)]
    if quiet.empty:
        raise CalibrationError(f"{category}: none of {len(rows)} unseen normals is below the threshold")
    shares = {diameter: float(quiet[diameter].mean()) for diameter in diameters}
    return _Smallest(len(quiet), len(table) - len(quiet), shares, geometry)


def _judged(
    detector: Detector, pictures: Iterator[tuple[str, Floats]], diameters: list[float]
) -> Iterator[dict[str | float, bool]]:
    """Tell of each picture whether it, and a spot of each diameter on it, are above the threshold."""
    for sample_id, picture in pictures:
        found: dict[str | float, bool] = {"normal": _above(detector, picture)}
        for diameter in () if found["normal"] else diameters:
            found[diameter] = _above(detector, _spot(picture, diameter, sample_id))
        yield found


def _above(detector: Detector, picture: Floats) -> bool:
    return bool(is_defect(detector.score(picture).image_score, detector.threshold))


def _spot(picture: Floats, diameter: float, name: str) -> Floats:
    """Draw a round spot, darker or brighter than its place by `_CONTRAST`; `name` alone decides the place."""
    height, width, _ = picture.shape
    digest = hashlib.sha256(f"spot/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    row, column = rng.uniform(0.15, 0.85, 2) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    inside = np.clip(diameter / 2 + 0.5 - np.hypot(rows - row, columns - column), 0, 1)[..., None]
    there = float(picture[int(row), int(column)].mean())
    changed = picture + inside * (_CONTRAST if there < 0.5 else -_CONTRAST)
    spotted: Floats = changed.clip(0, 1).astype(np.float32)
    return spotted


def few(
    subjects: Sequence[Subject], params: config.Params, counts: Sequence[int], draws: Sequence[int], work: Path
) -> pd.DataFrame:
    """Learn each class from `counts` of its training normals, with jittered copies and without, and judge its test.

    A draw takes its own parts, more of them where it takes more. Returns a row per class, count, draw and way:
    class, normals, draw, copies, image_auroc, pixel_auroc (None without masks), false_alarms and missed (shares of the
    test at the threshold). Raises `CalibrationError` where a class has too few parts.
    """
    rows, most = [], max(counts) * (1 + _COPIES) + 1
    calibration = params.calibration.model_copy(update={"promise_from": most})
    settings = params.model_copy(update={"calibration": calibration})
    runs = [(one, n, draw, copies) for one in subjects for draw in draws for n in counts for copies in (0, _COPIES)]
    for subject, n, draw, copies in track(runs, "few normals", len(runs)):
        context = trial.BenchmarkContext(
            replace(subject, rows=_some(subject, n, draw, copies, params.image)), settings, work
        )
        scorer = context.scorer()
        found = context.judge(trial.score_rows(scorer, context.test, subject.root, context.unseen))
        health = fitting.health(scorer.networks, context.examples, dict.fromkeys(_ENTROPIES))
        figures, scores = found.figures(settings.score.fusion, health), found.scores["image_score"].to_numpy()
        known = calibrate.within(scorer, context.normals.iloc[:n], subject.root, draw).frame["score"].to_numpy()
        chosen = thresholds.without_promise(known, calibration.false_alarm_rate, n, most)
        above = is_defect(scores, chosen.value)
        facts = {key: figures[key] for key in ("image_auroc", "pixel_auroc")}
        facts |= {"false_alarms": above[~context.defect].mean(), "missed": (~above[context.defect]).mean()}
        rows.append({"class": subject.name, "normals": n, "draw": draw, "copies": copies, **facts})
    return pd.DataFrame(rows)


def _some(subject: Subject, n: int, draw: int, copies: int, image: config.Image) -> pd.DataFrame:
    """Return `n` training normals of a class, one of each part, so many jittered copies of each, and the test rows."""
    rows = subject.rows
    learnt = rows[rows["split"].isin(["train", "calibrate"]) & (rows["label"] == "normal")].drop_duplicates("group_id")
    if len(learnt) < n:
        raise CalibrationError(f"{subject.name}: expected {n} parts to learn from, found {len(learnt)}; ask for fewer")
    order = sorted(learnt.index, key=lambda index: fraction(f"few/{draw}", str(learnt.at[index, "group_id"])))
    chosen = learnt.loc[order[:n]]
    more = [_copy(subject.root, row, number, image) for row in chosen.to_dict("records") for number in range(copies)]
    return pd.concat(
        [chosen, pd.DataFrame(more, columns=rows.columns), rows[rows["split"] == "test"]], ignore_index=True
    )


def _copy(root: Path, row: dict[Hashable, Any], number: int, image: config.Image) -> dict[Hashable, Any]:
    """Write a jittered copy of an image beside the dataset's own below `root`, which is the bench's; return its row."""
    path = f"copies/{row['sha256']}-{number}.png"
    draws = numpy_generator(0, "copy", row["sha256"], number)
    pixels = jittered(images.read(row["path"], root, image.bits), draws)
    images.write(root / path, pixels)
    changed = {"sample_id": f"{row['sample_id']} copy {number}", "path": path, "sha256": files.digest(root / path)}
    return row | changed
