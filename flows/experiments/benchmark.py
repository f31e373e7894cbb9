"""One class, one seed, one detector: fit it, judge it, measure what it takes, and keep the result on disk.

Each is measured in a process of its own, so that time and memory are its own. n test images. A finished result is two
files, the JSON written last: a killed bench loses at most one of them.
"""

import json
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save_file

from flows.experiments import bootstrap, rival_script, rivals, subjects, trial
from flows.experiments.baselines import BASELINES, Baseline
from flows.experiments.rivals import RIVALS
from flows.experiments.subjects import Subject, key_of, source_of
from flows.experiments.trial import BenchmarkContext
from pvqae.calibration import fitting
from pvqae.core import config, runtime
from pvqae.core.errors import PvqaeError
from pvqae.core.files import write_text
from pvqae.evaluation.metrics import PixelCounts, image_auroc
from pvqae.evaluation.stage import Judgeable
from pvqae.inference.scoring import Scorer, through
from pvqae.samples import geometry, images

OURS = "pvqae"
METHODS = (OURS, *BASELINES)
FIGURES = ("image_auroc", *bootstrap.PIXEL_FIGURES)
COSTS = ("fit_seconds", "milliseconds", "peak_megabytes", "megabytes")
UNTRAINED = "covering"  # our own memory: learns from what ours learns from
_JUDGES = ("flows/experiments/trial.py", "flows/experiments/benchmark.py")
_METRICS = ("pvqae/evaluation", "pvqae/calibration/thresholds.py")
_MEASURES = ("pvqae/calibration/normals.py", "pvqae/inference/measures.py", "pvqae/inference/scoring.py")


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """One detector's result on one class with one seed."""

    facts: dict[str, Any]  # FIGURES (None where undefined), COSTS; versions of a rival
    scores: NDArray[np.float64]  # n, in the order of the test rows
    counts: list[PixelCounts]  # n, or none without masks


def entry(
    context: BenchmarkContext, method: str, seed: int, minutes: float = 30, tell: rivals.Tell = print
) -> BenchmarkResult:
    """Return the result of `method` (of METHODS or RIVALS), kept from an earlier run where nothing that it depends on
    has changed. Raises `RivalError` for a rival that is not installed, fails, or takes more than `minutes`.
    """
    params = context.params.model_copy(update={"seed": seed})
    place = context.work / "results" / f"{context.subject.name}-{method}-{seed}-{_key(context, method, params)}"
    if not place.with_suffix(".json").exists():
        if method in RIVALS:
            done = rivals.run(context, method, seed, context.work.absolute().parent / "rivals", minutes, tell)
            found = _judge(context, done.results, done.facts)
        else:
            found = _apart(_measure, context.subject, params, context.work, method)
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(found), place.with_suffix(".safetensors"))
        write_text(place.with_suffix(".json"), json.dumps(found.facts, indent=1) + "\n")
    return _read(place)


def _key(context: BenchmarkContext, method: str, params: config.Params) -> str:
    columns = ["sample_id", "sha256", "group_id", "split", "label", "mask_path"]
    sections, code = _dependencies(method)
    facts = params.model_dump(mode="json", include=set(sections))
    pins = RIVALS[method].pins if method in RIVALS else None
    return key_of(context.subject.rows[columns].values.tolist(), facts, pins, source_of(*code, *_JUDGES, *_METRICS))


def _dependencies(method: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sections of the params and the code that decide a method's result."""
    if method == OURS:
        sections = ("seed", "image", "model", "memory", "train", "prior", "score")
        return sections, (*trial.SOURCES, "pvqae/inference", "pvqae/calibration")
    if method in RIVALS:
        return ("seed", "image"), ("flows/experiments/rivals.py", "flows/experiments/rival_script.py", "pvqae/samples")
    sections = ("seed", "image", "model", *(() if method.startswith("patchcore") else ("memory",)))
    return sections, (*subjects.VIEW_SOURCES, "flows/experiments/baselines.py", *_MEASURES)


def _apart(measure: Callable[..., BenchmarkResult], *given: object) -> BenchmarkResult:
    """Call `measure` in a process that is forked from one in which nothing but imports has happened.

    Raises what `measure` raises, and `PvqaeError` where the process is killed.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    answers, answer = server.Pipe(duplex=False)
    process = server.Process(target=_answer, args=(answer, measure, given))
    process.start()
    answer.close()  # the process has the only other copy, so its end is the end of the answers
    try:
        found: BenchmarkResult | Exception = answers.recv()
    except EOFError:
        found = PvqaeError("the process that measured was killed, as where memory is full; run again to go on")
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _answer(answer: Connection, measure: Callable[..., BenchmarkResult], given: tuple[object, ...]) -> None:
    try:
        answer.send(measure(*given))
    except Exception as error:  # whatever it is, it is raised where it was asked for
        error.add_note(traceback.format_exc())
        answer.send(error)


def _measure(subject: Subject, params: config.Params, work: Path, method: str) -> BenchmarkResult:
    """Fit from image files, with nothing kept from before, on one thread; then judge."""
    alone = params.model_copy(update={"compute": params.compute.model_copy(update={"threads": 1})})
    runtime.plan(alone.compute, 1).apply()
    context = BenchmarkContext(subject, alone, work)
    with tempfile.TemporaryDirectory(prefix="bench-") as fresh:
        begun = time.process_time()
        detector = _fit(BenchmarkContext(subject, alone, Path(fresh), keep=False), method)
        costs: dict[str, Any] = {"fit_seconds": round(time.process_time() - begun, 2)}
        costs["milliseconds"] = context.milliseconds(partial(_one, context, detector), time.process_time)
        costs["peak_megabytes"] = round(rival_script.peak_megabytes(), 1)
        size = trial.megabytes(detector, alone, {}) if isinstance(detector, Scorer) else detector.megabytes
        return _judge(context, _results(context, detector), costs | {"megabytes": round(size, 3)})


def _fit(context: BenchmarkContext, method: str) -> Scorer | Baseline:
    """Fit ours, or a yardstick: on all normals that ours reads, though it only sets its threshold by some of them."""
    if method == OURS:
        return context.scorer()
    examples = context.examples if method == UNTRAINED else context.every
    groups = fitting.group_numbers(context.normals, examples)
    return BASELINES[method](examples, groups, context.params, context.backbone.spec)


def _results(context: BenchmarkContext, detector: Scorer | Baseline) -> Iterator[Judgeable]:
    if isinstance(detector, Scorer):
        yield from trial.score_rows(detector, context.test, context.subject.root, context.unseen)
        return
    ids = list(context.test["sample_id"])
    for one in subjects.each_image(context.unseen, context.test, context.params.image):
        yield detector.score(one.features, one.valid, one.canvas, ids[one.row])


def _one(context: BenchmarkContext, detector: Scorer | Baseline, image: images.Floats) -> object:
    """Score from pixels, as a service would."""
    if isinstance(detector, Scorer):
        return detector.one(image)
    canvas = geometry.canvas(image, context.params.image)
    return detector.score(*through(context.backbone, canvas), canvas, "")


def _judge(context: BenchmarkContext, scored: Iterable[Judgeable], facts: dict[str, Any]) -> BenchmarkResult:
    judged = context.judge(scored)
    scores = judged.scores["image_score"].to_numpy(np.float64)
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    figures["image_auroc"] = image_auroc(context.defect, scores)
    if pixels := judged.pixels.get("fused"):
        values = (pixels.auroc(), pixels.aupro(), pixels.aupro(bootstrap.STRICT), pixels.f1_max())
        figures |= dict(zip(bootstrap.PIXEL_FIGURES, values, strict=True))
    return BenchmarkResult(figures | facts, scores, judged.counts)


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
