"""One class, one pass over its test images: figures, a table, curves and the pictures worth looking at.

Memory is bounded: of an image only its scores stay, of its maps only histogram counts, of the few most telling images
their drawn thumbnails.

The verb `pvqae evaluate C`: score the class's test images with its bundle, as anyone will, and judge the scores.
"""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.calibration.thresholds import is_defect
from pvqae.core.errors import DataError
from pvqae.core.files import whole_folder
from pvqae.evaluation import figures
from pvqae.evaluation.figures import PARTS
from pvqae.evaluation.metrics import PixelMetrics
from pvqae.report.gallery import Gallery, draw
from pvqae.samples.geometry import mask_of
from pvqae.samples.manifest import write_csv

if TYPE_CHECKING:
    from pvqae.inference.scoring import Scored
import time
from collections.abc import Iterator
from statistics import median

from pvqae.core import config, runtime
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.inference import bundle
from pvqae.samples import classes, manifest
from pvqae.samples import rows as checked

Values = dict[str, Any]
OUTCOMES = {
    ("defect", "defect"): "hit",
    ("defect", "normal"): "miss",
    ("normal", "defect"): "false_alarm",
    ("normal", "normal"): "correct",
}


def evaluate(
    rows: pd.DataFrame,
    scored: Iterable["Scored"],
    card: Values,
    health: Values,
    history: list[Values],
    out: Path,
    data_root: Path,
    *,
    fusion: str,
    pictures: int = 6,
    latency_ms: float | None = None,
    train_seconds: float | None = None,
) -> Values:
    """Judge the scores of one class's test images and write the folder `out`, whole or not at all.

    `rows` are the manifest rows of the images, `scored` one `Scored` for each of them in any order, `card` the
    bundle's calibration.json, `health` the "health" of its config.json, `history` the rows of history.jsonl.
    `pictures` images are drawn per group of `gallery.GROUPS`. `out` gets metrics.json, images.csv, curves.json,
    card.json (`card` and `health` as they are), pictures.json and pictures/. Returns the content of metrics.json.

    Raises `DataError` for missing, repeated or unknown images, a score that is not finite, or masks of only some
    defects; without any mask the class is judged by images alone.
    """
    pixels = {name: PixelMetrics() for name in ("fused", *PARTS)} if _has_masks(rows) else {}
    gallery = Gallery(pictures)
    images = _one_pass(rows, scored, card, len(health["level_shares"]), data_root, pixels, gallery)
    times = {"latency_ms": latency_ms, "train_seconds": train_seconds}
    result = figures.of_class(images, pixels, card["threshold"], fusion, health) | times
    with whole_folder(out) as folder:
        write_csv(images, folder / "images.csv")
        gallery.write(folder)
        _write_json(folder / "curves.json", figures.charts(images, card["threshold"], history))
        _write_json(folder / "card.json", {"card": card, "health": health})
        _write_json(folder / "metrics.json", result)
    return result


def _has_masks(rows: pd.DataFrame) -> bool:
    defects = rows[rows["label"] == "defect"]
    missing = defects[defects["mask_path"] == ""]
    if 0 < len(missing) < len(defects):
        raise DataError(
            f"{missing['path'].iloc[0]}: {len(missing)} of {len(defects)} defects have no mask; "
            "add the missing masks, or remove all of them to judge by images alone"
        )
    return len(defects) > 0 and missing.empty


def _one_pass(
    rows: pd.DataFrame,
    scored: Iterable["Scored"],
    card: Values,
    levels: int,
    data_root: Path,
    pixels: dict[str, PixelMetrics],
    gallery: Gallery,
) -> pd.DataFrame:
    """The content of images.csv in the order of `rows`; fills `pixels` and `gallery` on the way."""
    known = {str(row["sample_id"]): row for row in rows.to_dict("records")}
    table: dict[str, Values] = {}
    for item in scored:
        if item.sample_id not in known or item.sample_id in table:
            raise DataError(f"{item.sample_id}: scored twice, or not a test row; score each test row once")
        row = table[item.sample_id] = _row(known[item.sample_id], item, card["threshold"])
        mask = mask_of(known[item.sample_id]["mask_path"], item.anomaly_map.shape, data_root) if pixels else None
        if mask is not None:
            _count(pixels, item, mask, row["path"])
        gallery.offer(row, partial(draw, item, mask if row["label"] == "defect" else None, card, levels))
    missing = [sample for sample in known if sample not in table]
    if missing or not known:
        found = f"none for {missing[0]} and {len(missing) - 1} others" if missing else "no test rows"
        raise DataError(f"expected a score for each test row, found {found}; add test images or score all of them")
    return pd.DataFrame([table[sample] for sample in known])


def _row(row: dict[Any, Any], item: "Scored", threshold: float) -> Values:
    scores = {"image_score": item.image_score, **{part: item.parts[part] for part in PARTS}}
    if not np.isfinite(list(scores.values())).all():
        raise DataError(f"{row['path']}: expected finite scores, found {scores}; calibrate this class again")
    decision = "defect" if is_defect(item.image_score, threshold) else "normal"
    return {
        **{key: row[key] for key in ("sample_id", "path", "label", "kind")},
        **{name: float(score) for name, score in scores.items()},
        "decision": decision,
        "outcome": OUTCOMES[row["label"], decision],
    }


def _count(pixels: dict[str, PixelMetrics], item: "Scored", mask: NDArray[np.bool_], path: str) -> None:
    try:
        for name, counted in pixels.items():
            counted.add(item.anomaly_map if name == "fused" else item.part_maps[name], mask)
    except ValueError as error:
        raise DataError(f"{path}: its anomaly map can't be judged: {error}; calibrate this class again") from None


def _write_json(path: Path, values: Values) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")


def run(layout: Layout, params: config.Params, category: str) -> dict[str, Any]:
    """Write reports/<dataset>/classes/<category>/; returns its metrics."""
    known = classes.read(layout.classes_file, layout.name)
    network = known.member(category).network
    runtime.apply(runtime.plan(params.compute, len(known.networks)))
    rows = checked.read(layout, layout.class_rows(category, "test"))
    detector = bundle.load(layout.bundle(category))
    pairs = _listed(rows, layout.data)
    scored = track(detector.score_many(pairs, layout.data), f"evaluating {category}", total=len(rows))
    return evaluate(
        rows,
        scored,
        detector.card,
        detector.config["health"],
        _history(layout.network(network) / "history.jsonl"),
        layout.class_report(category),
        layout.data,
        fusion=detector.config["score"]["fusion"],
        pictures=params.evaluation.pictures,
        latency_ms=latency(detector, layout.data / rows["path"].iloc[0]) if len(rows) else None,
        train_seconds=json.loads(layout.timing(network).read_text("utf-8"))["train_seconds"],
    )


def _listed(rows: pd.DataFrame, data: Path) -> Iterator[tuple[str, str]]:
    """sample_id and path of each row whose file is the one of its sha256. Raises `IntegrityError` for another."""
    for sample_id, path, expected in zip(rows["sample_id"], rows["path"], rows["sha256"], strict=True):
        manifest.check(data, path, expected)
        yield sample_id, path


def latency(detector: bundle.Detector, image: Path, repeats: int = 5) -> float:
    """Median milliseconds from a file to its score, after one warm-up."""

    def once() -> Iterator[float]:
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            detector.score(image)
            yield (time.perf_counter() - begun) * 1000

    return round(median(list(once())[1:]), 2)


def _history(path: Path) -> list[dict[str, Any]]:
    """The training curve of the shipped fit."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for row in rows if row["fold"] == "full"]
