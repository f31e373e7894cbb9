"""The verb `pvqae evaluate C`: score the class's test images with its bundle, as anyone will, and judge the scores."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from pvqae import config, runtime
from pvqae.datasets import classes, manifest
from pvqae.datasets import rows as checked
from pvqae.evaluation.evaluate import evaluate
from pvqae.inference import bundle
from pvqae.layout import Layout
from pvqae.progress import track


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
