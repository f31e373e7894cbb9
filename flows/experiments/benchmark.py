"""One class, one seed, one detector: fit it, judge it, time it, and keep the result on disk.

n test images. A finished result is two files, the JSON written last: a killed bench loses at most one of them.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save_file

from flows.experiments import subjects, trial
from flows.experiments.baselines import BASELINES, Baseline, BaselineResult
from flows.experiments.subjects import key_of, source_of
from flows.experiments.trial import BenchmarkContext
from pvqae.calibration import fitting
from pvqae.core import config
from pvqae.core.files import write_text
from pvqae.evaluation.metrics import PixelCounts, image_auroc
from pvqae.evaluation.stage import Judgeable
from pvqae.inference.scoring import through
from pvqae.samples import geometry, images

OURS = "pvqae"
METHODS = (OURS, *BASELINES)
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
_JUDGES = ("flows/experiments/trial.py", "pvqae/evaluation", "pvqae/calibration/thresholds.py")
_MEASURES = ("pvqae/calibration/normals.py", "pvqae/inference/measures.py", "pvqae/inference/readout.py")


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """One detector's result on one class with one seed."""

    facts: dict[str, Any]  # FIGURES (None where undefined), train_seconds, megabytes, milliseconds
    scores: NDArray[np.float64]  # n, in the order of the test rows
    counts: list[PixelCounts]  # n, or none without masks


def entry(context: BenchmarkContext, method: str, seed: int) -> BenchmarkResult:
    """Return the result of `method` (of METHODS), kept from an earlier run where nothing it depends on has changed."""
    params = context.params.model_copy(update={"seed": seed})
    place = context.work / "results" / f"{context.subject.name}-{method}-{seed}-{_key(context, method, params)}"
    if not place.with_suffix(".json").exists():
        found = _measure(context, method, params)
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(found), place.with_suffix(".safetensors"))
        write_text(place.with_suffix(".json"), json.dumps(found.facts, indent=1) + "\n")
    return _read(place)


def _key(context: BenchmarkContext, method: str, params: config.Params) -> str:
    columns = ["sample_id", "sha256", "group_id", "split", "label", "mask_path"]
    sections, code = _dependencies(method)
    facts = params.model_dump(mode="json", include=set(sections))
    return key_of(context.subject.rows[columns].values.tolist(), facts, source_of(*code, *_JUDGES))


def _dependencies(method: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sections of the params and the code that decide a method's result."""
    if method == OURS:
        sections = ("seed", "image", "model", "memory", "train", "prior", "score")
        return sections, (*trial.SOURCES, "pvqae/inference", "pvqae/calibration")
    sections = ("seed", "image", "model", *(() if method.startswith("patchcore") else ("memory",)))
    return sections, (*subjects.VIEW_SOURCES, "flows/experiments/baselines.py", *_MEASURES)


def _measure(context: BenchmarkContext, method: str, params: config.Params) -> BenchmarkResult:
    _ = context.examples, context.unseen  # reading is no detector's own time
    begun = time.perf_counter()
    if method == OURS:
        scorer = context.scorer(params)
        seconds = time.perf_counter() - begun
        scored = trial.score_rows(scorer, context.test, context.subject.root, context.unseen)
        return _judge(context, scored, scorer.one, seconds, trial.megabytes(scorer, params, {}))
    groups = fitting.group_numbers(context.normals, context.examples)
    baseline = BASELINES[method](context.examples, groups, params, context.backbone.spec)
    seconds = time.perf_counter() - begun
    return _judge(context, _results(context, baseline), partial(_one, context, baseline), seconds, baseline.megabytes)


def _results(context: BenchmarkContext, baseline: Baseline) -> Iterator[Judgeable]:
    ids = list(context.test["sample_id"])
    for one in subjects.each_image(context.unseen, context.test, context.params.image):
        yield baseline.score(one.features, one.valid, one.canvas, ids[one.row])


def _one(context: BenchmarkContext, baseline: Baseline, image: images.Floats) -> BaselineResult:
    """Score from pixels, as a service would."""
    canvas = geometry.canvas(image, context.params.image)
    return baseline.score(*through(context.backbone, canvas), canvas, "")


def _judge(
    context: BenchmarkContext,
    scored: Iterator[Judgeable],
    one: Callable[[images.Floats], object],
    seconds: float,
    size: float,
) -> BenchmarkResult:
    judged = context.judge(scored)
    scores = judged.scores["image_score"].to_numpy(np.float64)
    pixels = judged.pixels.get("fused")
    facts = {
        "image_auroc": image_auroc(context.defect, scores),
        "pixel_auroc": pixels.auroc() if pixels else None,
        "aupro": pixels.aupro() if pixels else None,
        "train_seconds": round(seconds, 2),
        "megabytes": round(size, 3),
        "milliseconds": context.milliseconds(one),
    }
    return BenchmarkResult(facts, scores, judged.counts)


def _tensors(found: BenchmarkResult) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"scores": found.scores}
    if found.counts:
        arrays["length"] = np.array([len(c.bins) for c in found.counts])
        joined = zip(PixelCounts._fields, zip(*found.counts, strict=True), strict=True)
        arrays |= {name: np.concatenate(values) for name, values in joined}
    return arrays


def _read(place: Path) -> BenchmarkResult:
    facts = json.loads(place.with_suffix(".json").read_text("utf-8"))
    tensors = load(place.with_suffix(".safetensors").read_bytes())
    counts = []
    if "length" in tensors:
        ends = np.cumsum(tensors["length"])[:-1]
        parts = (np.split(tensors[name], ends) for name in PixelCounts._fields)
        counts = [PixelCounts(*values) for values in zip(*parts, strict=True)]
    return BenchmarkResult(facts, tensors["scores"], counts)
