"""Does a bundle keep what its card promises? Measured on the class's own normals that its fit has not seen.

`flows bench calibration C` tries the thresholds; `flows bench smallest C` puts spots of falling size on the normals;
`flows bench few` learns from 1 to 7 normals, from which no card can promise anything. `flows bench hairlines` makes
line scans with lines of known width and contrast: what is found, in 8 and in 16 bit, and what a large image takes.
`flows bench int8` judges test images by a float32 network and by the same in 8 bit.
"""

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from flows.experiments import rival_script, trial
from flows.experiments.page import markdown
from flows.experiments.subjects import Subject
from pvqae import api
from pvqae.calibration import calibrate, fitting, thresholds
from pvqae.calibration.thresholds import is_defect, realised_rates
from pvqae.core import config, files, runtime
from pvqae.core.errors import CalibrationError, ParityError
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.core.seeding import numpy_generator
from pvqae.datasets.splits import fraction
from pvqae.evaluation.metrics import image_auroc
from pvqae.features.features import jittered
from pvqae.inference import bundle
from pvqae.inference.bundle import Detector
from pvqae.samples import images, manifest
from pvqae.samples.images import Floats

_FIGURES = ("image_auroc", "pixel_auroc", "aupro")
_PRECISIONS = ("float32", "int8")
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


@dataclass(frozen=True)
class Hairlines:
    """What `hairlines` makes and measures. Sizes are (columns, rows) in pixels; the web moves along the columns."""

    scan: tuple[int, int] = (1024, 512)  # of what is learnt from and judged
    whole: tuple[int, int] = (16384, 2048)  # of one image whose time and memory are measured
    normals: int = 20  # that are learnt from
    unseen: int = 10  # further normals
    lines: int = 5  # of each width and contrast
    widths: tuple[float, ...] = (1, 2, 3, 4, 6, 8, 12)  # pixels
    contrasts: tuple[float, ...] = (0.02, 0.03, 0.05, 0.1, 0.2)  # darker than the surface by this share
    overrides: tuple[str, ...] = ("calibration.folds=2", "memory.codes=1024", "memory.patches=30000")  # minutes


HAIRLINES = Hairlines()
_FAST = ("compute.threads=1", "calibration.folds=2", "memory.codes=64", "memory.patches=4000")
QUICK_HAIRLINES = Hairlines((160, 64), (320, 128), 8, 2, 1, (8,), (0.3,), ("image.size=64", *_FAST))
_BENT, _LONGEST = (60.0, 8.0), (100, 800)  # pixels: period and height of a line's waves; lengths drawn between


def hairlines(params: config.Params, asked: Hairlines, bits: int) -> dict[str, Any]:
    """Learn from made line scans of `bits` (8 or 16) per pixel, grey, and judge lines of known width and contrast.

    Returns `table` (a row per width and contrast: width, contrast, found (share above the threshold), auroc (against
    the unseen normals)), false_alarms, milliseconds (median of a scan, from its file), views, and of the whole image
    whole_views, whole_seconds, whole_megabytes (the peak of a process that loads the bundle and scores it) and
    bare_megabytes (of one that scores a single scan of one view's size).
    """
    spawned = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="hairlines-") as folder,
        ProcessPoolExecutor(1, spawned, max_tasks_per_child=1) as apart,  # time and memory of each step are its own
    ):
        place, side = Path(folder), params.image.size
        for name, size in (("whole", asked.whole), ("one", (side, side))):
            write_scan(place / f"{name}.png", made_scan(params.seed, name, size), bits)
        found: dict[str, Any] = apart.submit(_lines_found, place, params, asked, bits).result()
        _, _, found["bare_megabytes"] = apart.submit(_costs, place, params, "one").result()
        *costs, found["whole_megabytes"] = apart.submit(_costs, place, params, "whole").result()
        found["whole_views"], found["whole_seconds"] = costs
    return found


def _lines_found(place: Path, params: config.Params, asked: Hairlines, bits: int) -> dict[str, Any]:
    for number in range(asked.normals):
        write_scan(place / "good" / f"{number}.png", made_scan(params.seed, number, asked.scan), bits)
    detector = api.fit(place / "good", params)
    detector.save(place / "bundle")
    runtime.plan(params.compute, 1).apply()
    times = []

    def judged(name: str, width: float = 0, contrast: float = 0) -> float:
        surface = made_scan(params.seed, name, asked.scan)
        if width:
            surface = with_hairline(surface, width, contrast, numpy_generator(params.seed, "line", name))
        write_scan(place / "judged.png", surface, bits)
        begun = time.perf_counter()
        scored = detector.score(place / "judged.png")
        detector.marks(scored)
        times.append(time.perf_counter() - begun)
        return scored.image_score

    normal = np.array([judged(f"unseen {number}") for number in range(asked.unseen)])
    rows = []
    pairs = [(width, contrast) for width in asked.widths for contrast in asked.contrasts]
    for width, contrast in track(pairs, f"hairlines, {bits} bit", len(pairs)):
        names = [f"defect {number} {width} {contrast}" for number in range(asked.lines)]
        scores = np.array([judged(name, width, contrast) for name in names])
        labels = np.repeat([True, False], [len(scores), len(normal)])
        auroc = image_auroc(labels, np.concatenate([scores, normal]))
        found = float(is_defect(scores, detector.threshold).mean())
        rows.append({"width": width, "contrast": contrast, "found": found, "auroc": auroc})
    return {
        "table": pd.DataFrame(rows),
        "false_alarms": float(is_defect(normal, detector.threshold).mean()),
        "milliseconds": 1000 * float(np.median(times)),
        "sentence": thresholds.sentence(detector.card["smallest_defect"]),
    }


def _costs(place: Path, params: config.Params, name: str) -> tuple[int, float, float]:
    """Return the number of views, seconds and the peak of memory in MB of scoring one file."""
    runtime.plan(params.compute, 1).apply()
    detector = bundle.load(place / "bundle")
    begun = time.perf_counter()
    scored = detector.score(place / f"{name}.png")
    detector.marks(scored)
    return len(scored.canvas.views), time.perf_counter() - begun, rival_script.peak_megabytes()


def made_scan(seed: int, name: object, size: tuple[int, int]) -> Floats:
    """Return a rolled surface, (rows, columns) in [0, 1]: lamp and stripes across the web are the same in every scan of
    a seed, the grain is its own.
    """
    columns, rows = size
    web = numpy_generator(seed, "web", rows)
    lamp = 0.55 * (1 - 0.35 * np.linspace(-1, 1, rows) ** 2)
    stripes = 0.02 * web.standard_normal(rows) + 0.3 * gaussian_filter1d(web.standard_normal(rows), 20)
    own = numpy_generator(seed, "scan", str(name), rows, columns)
    rolled = gaussian_filter1d(own.standard_normal((rows, columns), dtype=np.float32), 6, axis=1)
    cloud = Image.fromarray(own.standard_normal((3, 2 + columns // 256), dtype=np.float32))
    clouds = np.asarray(cloud.resize((columns, rows), Image.Resampling.BICUBIC))
    profile = (lamp * (1 + 0.3 * stripes))[:, None].astype(np.float32)
    surface: Floats = profile * (1 + 0.02 * clouds) + np.float32(0.06) * rolled
    surface += np.float32(0.005) * own.standard_normal((rows, columns), dtype=np.float32)
    return surface.clip(0, 1)


def with_hairline(surface: Floats, width: float, contrast: float, draws: np.random.Generator) -> Floats:
    """Return the scan with one slightly bent line, `width` pixels across and darker by the share `contrast`."""
    rows, columns = surface.shape
    low, high = _LONGEST
    length, turn = draws.uniform(min(low, rows), min(high, columns / 2)), draws.uniform(0, np.pi)
    row, column = draws.uniform(0.2, 0.8, 2) * (rows, columns)
    down, right = np.ogrid[:rows, :columns]
    along = (right - column) * np.cos(turn) + (down - row) * np.sin(turn)
    across = (down - row) * np.cos(turn) - (right - column) * np.sin(turn) + _BENT[1] * np.sin(along / _BENT[0])
    covered = np.clip((width + 1) / 2 - abs(across), 0, min(1.0, width)) * np.clip(length / 2 - abs(along), 0, 1)
    marked: Floats = (surface * (1 - contrast * covered)).astype(np.float32)
    return marked


def write_scan(file: Path, surface: Floats, bits: int) -> None:
    images.write(file, surface, channels=1, bit_depth=bits)


def hairlines_page(found: dict[int, dict[str, Any]], asked: Hairlines) -> str:
    """Return the tables as Markdown, by bits: share found at the calibrated threshold, and image AUROC."""
    lines = []
    for bits, one in found.items():
        table, contrasts = one["table"], list(asked.contrasts)
        lines += [f"| {bits} bit, width | {' | '.join(f'contrast {c:.0%}' for c in contrasts)} |"]
        lines += ["|---|" + "---|" * len(contrasts)]
        for width, rows in table.groupby("width"):
            cells = (f"{row.found:.0%} ({row.auroc:.3f})" for row in rows.itertuples())
            lines.append(f"| {width:g} px | {' | '.join(cells)} |")
        (columns, rows), (wide, high) = asked.scan, asked.whole
        lines += [
            "",
            f"{bits} bit: {one['sentence']}. False alarms on {asked.unseen} unseen normals {one['false_alarms']:.0%}. "
            f"A scan of {columns} x {rows} takes {one['milliseconds']:.0f} ms. One of {wide} x {high} in "
            f"{one['whole_views']} views takes {one['whole_seconds']:.1f} s and {one['whole_megabytes']:.0f} MB at the "
            f"peak, an image of one view {one['bare_megabytes']:.0f} MB.",
            "",
        ]
    return "\n".join(lines)


def precisions(subjects: Sequence[Subject], params: config.Params, seeds: Sequence[int], work: Path) -> pd.DataFrame:
    """Fit and judge each class in both precisions with each seed.

    Returns a row per class and seed: class, seed, and of both precisions `_FIGURES` (pixel_auroc and aupro None without
    masks) and milliseconds (from a file to its score), as image_auroc_float32, image_auroc_int8 and so on.
    """
    rows, runs = [], [(subject, seed) for subject in subjects for seed in seeds]
    for subject, seed in track(runs, "both precisions", len(runs)):
        row: dict[str, object] = {"class": subject.name, "seed": seed}
        for precision in _PRECISIONS:
            model = params.model.model_copy(update={"precision": precision})
            settings = params.model_copy(update={"model": model, "seed": seed})
            found = trial.BenchmarkContext(subject, settings, work).outcome()
            facts = {name: found.figures[name] for name in _FIGURES} | {"milliseconds": found.milliseconds}
            row |= {f"{name}_{precision}": value for name, value in facts.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _lost(found: pd.DataFrame) -> pd.DataFrame:
    """Return by how much each figure is lower with INT8: a row per class, means over the seeds."""
    pairs = {name: found[f"{name}_float32"] - found[f"{name}_int8"] for name in _FIGURES}
    return pd.DataFrame(pairs).astype(float).groupby(found["class"], sort=False).mean()


def precisions_page(found: pd.DataFrame) -> str:
    """Return the means over the seeds as Markdown: float32 → int8."""
    heads = ["class", *(name.replace("_", " ") for name in _FIGURES), "ms per image"]
    lines = []
    for name, rows in found.groupby("class", sort=False):
        means = rows.drop(columns=["class", "seed"]).astype(float).mean()
        cells = [f"{means[f'{key}_float32']:.4f} → {means[f'{key}_int8']:.4f}" for key in _FIGURES]
        cells.append(f"{means['milliseconds_float32']:.0f} → {means['milliseconds_int8']:.0f}")
        lines.append([str(name), *cells])
    return "\n".join(markdown(heads, lines)).replace("nan → nan", "-")


def insist_on_precision(found: pd.DataFrame, limit: float) -> None:
    """Raise `ParityError` where the image AUROC of a class falls by more than `limit` in the mean over the seeds."""
    lost = _lost(found)["image_auroc"]
    if not (lost <= limit).all():
        what = ", ".join(f"{name} by {value:.4f}" for name, value in lost[~(lost <= limit)].items())
        raise ParityError(
            f"int8 lowers the image AUROC of {what}; allowed {limit:g}: keep model.precision float32 there"
        )
