"""The verb `pvqae evaluate C`: score a class's test images with its bundle, judge the scores, write its report folder.

One pass with bounded memory: of an image only its scores stay, of its maps only histogram counts, of the few most
telling images their drawn thumbnails.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.calibration.thresholds import is_defect
from pvqae.core import config, runtime
from pvqae.core.errors import DataError
from pvqae.core.files import whole_folder
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.evaluation import figures
from pvqae.evaluation.metrics import PixelCounts, PixelMetrics, count
from pvqae.inference import bundle
from pvqae.inference.scoring import Scored
from pvqae.report.gallery import Gallery, draw
from pvqae.samples import classes, manifest
from pvqae.samples.geometry import mask_of

Values = dict[str, Any]
_OUTCOMES = {
    ("defect", "defect"): "hit",
    ("defect", "normal"): "miss",
    ("normal", "defect"): "false_alarm",
    ("normal", "normal"): "correct",
}


class Judgeable(Protocol):
    """What a detector says of one image: `Scored`, or the verdict of another method, whose `parts` may be empty."""

    @property
    def sample_id(self) -> str: ...
    @property
    def image_score(self) -> float: ...
    @property
    def anomaly_map(self) -> NDArray[np.float32]: ...
    @property
    def parts(self) -> dict[str, float]: ...
    @property
    def part_maps(self) -> dict[str, NDArray[np.float32]]: ...


Item = TypeVar("Item", bound=Judgeable)


@dataclass(frozen=True, eq=False)
class _Judged(Generic[Item]):
    """One image's result with the truth about it."""

    row: dict[Any, Any]  # of the manifest
    item: Item
    scores: dict[str, float]  # image_score and the parts
    mask: NDArray[np.bool_] | None  # None where the class is judged by images alone
    counts: PixelCounts | None  # of the fused map


def _evaluate(
    rows: pd.DataFrame,
    scored: Iterable[Scored],
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
    pixels: dict[str, PixelMetrics] = {}
    gallery, levels, table = Gallery(pictures), len(health["level_shares"]), {}
    for one in judge(rows, scored, data_root, pixels):
        row = table[one.item.sample_id] = _row(one, card["threshold"]) | _marked(one, card, pixels)
        gallery.offer(row, partial(draw, one.item, one.mask if row["label"] == "defect" else None, card, levels))
    images = pd.DataFrame([table[sample] for sample in rows["sample_id"]])
    times = {"latency_ms": latency_ms, "train_seconds": train_seconds}
    result = figures.of_class(images, pixels, card["threshold"], fusion, health, card.get("pixel")) | times
    with whole_folder(out) as folder:
        manifest.write_csv(images, folder / "images.csv")
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


def judge(
    rows: pd.DataFrame, scored: Iterable[Item], data_root: Path, pixels: dict[str, PixelMetrics]
) -> Iterator[_Judged[Item]]:
    """Yield each of `scored`, one result per manifest row in any order, with the truth about its image.

    On the way the maps are added to `pixels`, by the names of the parts and "fused"; without any mask it stays empty.
    Raises `DataError` for missing, repeated or unknown images, for scores or maps that are not finite, and for masks of
    only some defects.
    """
    masked, left = _has_masks(rows), {str(row["sample_id"]): row for row in rows.to_dict("records")}
    for item in scored:
        if (row := left.pop(item.sample_id, None)) is None:
            raise DataError(f"{item.sample_id}: scored twice, or not a test row; score each test row once")
        scores = {"image_score": float(item.image_score), **{name: float(x) for name, x in item.parts.items()}}
        if not np.isfinite(list(scores.values())).all():
            raise DataError(f"{row['path']}: a score is not finite: {scores}; calibrate this class again")
        mask = mask_of(row["mask_path"], item.anomaly_map.shape, data_root) if masked else None
        counts = None if mask is None else _count(pixels, item, mask, row["path"])
        yield _Judged(row, item, scores, mask, counts)
    if left or rows.empty:
        reason = f"no score for {next(iter(left))} and {len(left) - 1} others" if left else "no test rows"
        raise DataError(f"each test row needs a score: {reason}; add test images or score all of them")


def _count(pixels: dict[str, PixelMetrics], item: Judgeable, mask: NDArray[np.bool_], path: str) -> PixelCounts:
    try:
        fused = count(item.anomaly_map, mask)
        pixels.setdefault("fused", PixelMetrics()).add_counts(fused)
        for name, values in item.part_maps.items():
            own = fused if values is item.anomaly_map else count(values, mask)
            pixels.setdefault(name, PixelMetrics()).add_counts(own)
    except ValueError as error:
        raise DataError(f"{path}: its anomaly map can't be judged: {error}; calibrate this class again") from None
    return fused


def _row(one: _Judged[Scored], threshold: float) -> Values:
    """Return the image's row of images.csv."""
    decision = "defect" if is_defect(one.item.image_score, threshold) else "normal"
    return {
        **{key: one.row[key] for key in ("sample_id", "path", "label", "kind")},
        **one.scores,
        "decision": decision,
        "outcome": _OUTCOMES[one.row["label"], decision],
    }


def _marked(one: _Judged[Scored], card: Values, pixels: dict[str, PixelMetrics]) -> Values:
    """Return the share of the image that the pixel threshold marks, and compare it with the mask if there is one."""
    if not card.get("pixel"):  # a bundle from before there was one
        return {"marked_area": None}
    marked = one.item.anomaly_map > card["pixel"]["threshold"]
    if one.mask is not None:
        pixels["fused"].compare(marked, one.mask)
    return {"marked_area": float(f"{marked.mean():.6g}")}


def _write_json(path: Path, values: Values) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")


def run(layout: Layout, params: config.Params, category: str) -> dict[str, Any]:
    """Write `reports/<dataset>/classes/<category>/`; returns its metrics."""
    known = classes.read(layout.classes_file, layout.name)
    network = known.member(category).network
    runtime.plan(params.compute, len(known.networks)).apply()
    rows = manifest.read_rows(layout, layout.class_rows(category, "test"))
    detector = bundle.load(layout.bundle(category))
    pairs = _listed(rows, layout.data)
    scored = track(detector.score_many(pairs, layout.data), f"evaluating {category}", total=len(rows))
    return _evaluate(
        rows,
        scored,
        detector.card,
        detector.config["health"],
        _history(layout.network(network) / "history.jsonl"),
        layout.class_report(category),
        layout.data,
        fusion=detector.config["score"]["fusion"],
        pictures=params.evaluation.pictures,
        latency_ms=_latency(detector, layout.data / rows["path"].iloc[0]) if len(rows) else None,
        train_seconds=json.loads(layout.timing(network).read_text("utf-8"))["train_seconds"],
    )


def _listed(rows: pd.DataFrame, data: Path) -> Iterator[tuple[str, str]]:
    """Yield sample_id and path of each row. Raises `IntegrityError` if a file no longer has the row's sha256."""
    for sample_id, path, expected in zip(rows["sample_id"], rows["path"], rows["sha256"], strict=True):
        manifest.check(data, path, expected)
        yield sample_id, path


def _latency(detector: bundle.Detector, image: Path, repeats: int = 5) -> float:
    """Return the median milliseconds from a file to its score, after one warm-up."""

    def once() -> Iterator[float]:
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            detector.score(image)
            yield (time.perf_counter() - begun) * 1000

    return round(median(list(once())[1:]), 2)


def _history(path: Path) -> list[dict[str, Any]]:
    """Return the training curve of the shipped fit."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for row in rows if row["fold"] == "full"]
