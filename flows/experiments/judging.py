"""Judge the scores of one class's test images against labels and masks, keeping what a bootstrap needs.

What a detector costs: seconds, megabytes, milliseconds per image.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flows.experiments import bench_views
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.progress import track
from pvqae.evaluation import figures
from pvqae.evaluation.metrics import PixelCounts, PixelMetrics, count
from pvqae.features.examples import Examples
from pvqae.inference import bundle
from pvqae.inference.scoring import Scored, Scorer
from pvqae.samples.geometry import mask_of
from pvqae.samples.images import Bits, Floats, read

Values = dict[str, Any]
UNKNOWN = ("threshold", "false_alarm_rate", "miss_rate")  # they need calibration


@dataclass(frozen=True, eq=False)
class Judged:
    """What a detector says of test images."""

    scores: pd.DataFrame  # sample_id, group_id, label, kind, image_score, and s_prior, s_recon, product of the scorer
    pixels: dict[str, PixelMetrics]  # by map, "fused" first; empty without masks
    counts: list[PixelCounts] = field(default_factory=list)  # of the fused map, one for each row of `scores`


def scored_rows(
    scorer: Scorer, rows: pd.DataFrame, data_root: Path, unseen: Examples | None = None
) -> Iterator[Scored]:
    """Each image of `rows` in order, from its file, or from kept views without its picture."""
    ids = list(rows["sample_id"])
    if unseen is None:
        yield from scorer.many(zip(ids, rows["path"], strict=True), data_root)
        return
    for one in bench_views.each(unseen, rows, scorer.image):
        yield scorer.from_features(one.features, one.valid, one.canvas, ids[one.row])


class Judgeable(Protocol):
    """What a detector says of one image: the scorer's `Scored`, or a baseline's verdict."""

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


def judged(scored: Iterable[Judgeable], rows: pd.DataFrame, data_root: Path) -> Judged:
    """Judge one result for each of `rows`, in their order, against labels and masks.

    Raises `DataError` for results in another order.
    """
    masked = (rows["mask_path"] != "").any()
    pixels: dict[str, PixelMetrics] = {}
    table, counts = [], []
    for row, item in zip(rows.to_dict("records"), track(scored, "judging", total=len(rows)), strict=True):
        table.append(_row(row, item.sample_id) | {"image_score": item.image_score, **item.parts})
        if masked:
            mask = mask_of(row["mask_path"], item.anomaly_map.shape, data_root)
            counts.append(count(item.anomaly_map, mask))
            pixels.setdefault("fused", PixelMetrics()).add_counts(counts[-1])
            for name, values in item.part_maps.items():
                pixels.setdefault(name, PixelMetrics()).add(values, mask)
    return Judged(pd.DataFrame(table), pixels, counts)


def _row(row: dict[Any, Any], sample_id: str) -> Values:
    if row["sample_id"] != sample_id:
        raise DataError(f"expected the score of {row['sample_id']}, found that of {sample_id}; score rows in order")
    return {key: row[key] for key in ("sample_id", "group_id", "label", "kind")}


def figures_of(judgement: Judged, fusion: str, health: Values) -> Values:
    """As metrics.json has them; what needs a threshold is None."""
    values = figures.of_class(judgement.scores, judgement.pixels, math.nan, fusion, health)
    kinds = {kind: facts | {"miss_rate": None} for kind, facts in values["kinds"].items()}
    return values | dict.fromkeys(UNKNOWN) | {"kinds": kinds}


REPEATS = 5


def megabytes(scorer: Scorer, params: config.Params, health: dict[str, Any]) -> float:
    """Size of the bundle on disk, millions of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        bundle.save(place, scorer, params, "trial", health, {})
        return round(sum(file.stat().st_size for file in place.iterdir()) / 1e6, 3)


def milliseconds(
    score: Callable[[Floats], object], rows: pd.DataFrame, data_root: Path, bits: Bits, repeats: int = REPEATS
) -> float:
    """Median from a file to its score, over the first `repeats` images, after one warm-up."""
    score(read(rows["path"].iloc[0], data_root, bits))
    times = []
    for path in rows["path"].iloc[:repeats]:
        begun = time.perf_counter()
        score(read(path, data_root, bits))
        times.append((time.perf_counter() - begun) * 1000)
    return round(median(times), 2)


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now
