"""One class, one seed, one detector: fit it, judge it, time it, and keep the result on disk.

n test images. A finished result is two files, the JSON written last: a killed bench loses at most one of them.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save_file

from flows.experiments import bench_views, judging, trial
from flows.experiments.baselines import BASELINES
from flows.experiments.bench_subjects import Subject
from flows.experiments.verdict import Detector, Verdict
from pvqae.calibration import fitting
from pvqae.core import config
from pvqae.core.files import write_text
from pvqae.datasets import folds
from pvqae.evaluation.metrics import PixelCounts, image_auroc
from pvqae.features.examples import Examples
from pvqae.inference.scoring import Scorer, through
from pvqae.model import backbones
from pvqae.model.backbones import Backbone
from pvqae.samples import geometry, images

OURS = "pvqae"
METHODS = (OURS, *BASELINES)
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
JUDGES = ("flows/experiments/judging.py", "pvqae/evaluation/metrics.py", "pvqae/calibration/thresholds.py")
YARDSTICKS = (*bench_views.SOURCES, "flows/experiments/verdict.py", "pvqae/inference/readout.py")


@dataclass(frozen=True, eq=False)
class Entry:
    """One detector's result on one class with one seed."""

    facts: dict[str, Any]  # FIGURES (None where undefined), train_seconds, megabytes, milliseconds
    scores: NDArray[np.float64]  # n, in the order of the test rows
    counts: list[PixelCounts]  # n, or none without masks


@dataclass(frozen=True, eq=False)
class Ring:
    """A class ready to be fought over: its views are read at first use and shared by all detectors and seeds."""

    subject: Subject
    params: config.Params
    work: Path

    @cached_property
    def normals(self) -> pd.DataFrame:
        return trial.normal_rows(self.subject.rows, self.params.calibration)

    @cached_property
    def test(self) -> pd.DataFrame:
        return trial.test_rows(self.subject.rows)

    @cached_property
    def backbone(self) -> Backbone:
        return backbones.make(self.params.model).eval()

    def _views(self, rows: pd.DataFrame) -> Examples:
        return bench_views.examples_of(rows, self.subject.root, self.params, self.backbone, self.work / "views")

    @cached_property
    def every(self) -> Examples:
        """The views of `normals`: those learnt from, and those that choose our read-out."""
        return self._views(self.normals)

    @cached_property
    def examples(self) -> Examples:
        return self.every.subset(torch.from_numpy(folds.learns(self.normals, folds.FULL)))

    @cached_property
    def unseen(self) -> Examples | None:
        return self._views(self.test) if self.backbone.spec.frozen else None

    def entry(self, method: str, seed: int) -> Entry:
        """The result of `method` (of METHODS), kept from an earlier run where nothing that it depends on changed."""
        params = self.params.model_copy(update={"seed": seed})
        place = self.work / "results" / f"{self.subject.name}-{method}-{seed}-{self._key(method, params)}"
        if not place.with_suffix(".json").exists():
            found = self._measure(method, params)
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(_tensors(found), place.with_suffix(".safetensors"))
            write_text(place.with_suffix(".json"), json.dumps(found.facts, indent=1) + "\n")
        return _read(place)

    def _key(self, method: str, params: config.Params) -> str:
        names = self.subject.rows[["sample_id", "sha256", "group_id", "split", "label", "mask_path"]].values.tolist()
        sections, code = _depends(method)
        return bench_views.key_of(
            names, params.model_dump(mode="json", include=set(sections)), bench_views.source_of(*code, *JUDGES)
        )

    def _measure(self, method: str, params: config.Params) -> Entry:
        _ = self.examples, self.unseen  # reading is no detector's own time
        begun = time.perf_counter()
        if method == OURS:
            found = trial.trained(params, self.examples, self.work, self.backbone)
            scorer = trial.fitted(params, found, self.normals, self.every, self.subject.root)
            seconds, size = time.perf_counter() - begun, judging.megabytes(scorer, params, {})
            return self._judge(self._scored(scorer), scorer.one, seconds, size)
        groups = fitting.group_numbers(self.normals, self.examples)
        detector = BASELINES[method](self.examples, groups, params, self.backbone.spec)
        seconds = time.perf_counter() - begun
        return self._judge(self._verdicts(detector), partial(self._one, detector), seconds, detector.megabytes)

    def _scored(self, scorer: Scorer) -> Iterator[judging.Judgeable]:
        return judging.scored_rows(scorer, self.test, self.subject.root, self.unseen)

    def _verdicts(self, detector: Detector) -> Iterator[judging.Judgeable]:
        assert self.unseen is not None, "baselines stand on a frozen backbone"
        ids = list(self.test["sample_id"])
        for one in bench_views.each(self.unseen, self.test, self.params.image):
            yield detector.score(one.features, one.valid, one.canvas, ids[one.row])

    def _one(self, detector: Detector, image: images.Floats) -> Verdict:
        """From pixels, as a service would."""
        canvas = geometry.canvas(image, self.params.image)
        return detector.score(*through(self.backbone, canvas), canvas, "")

    def _judge(
        self, scored: Iterator[judging.Judgeable], one: Callable[[images.Floats], object], seconds: float, size: float
    ) -> Entry:
        judged = judging.judged(scored, self.test, self.subject.root)
        scores = judged.scores["image_score"].to_numpy(np.float64)
        pixels = judged.pixels.get("fused")
        facts = {
            "image_auroc": image_auroc(self.defect, scores),
            "pixel_auroc": pixels.auroc() if pixels else None,
            "aupro": pixels.aupro() if pixels else None,
            "train_seconds": round(seconds, 2),
            "megabytes": round(size, 3),
            "milliseconds": judging.milliseconds(one, self.test, self.subject.root, self.params.image.bits),
        }
        return Entry(facts, scores, judged.counts)

    @cached_property
    def defect(self) -> NDArray[np.bool_]:
        """Labels of the test rows."""
        return (self.test["label"] == "defect").to_numpy(np.bool_, copy=True)


def _depends(method: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sections of the params and the code that decide a method's result."""
    if method == OURS:
        return ("seed", "image", "model", "memory", "train", "prior", "score"), (
            *trial.SOURCES,
            "pvqae/inference",
            "pvqae/calibration",
        )
    if method.startswith("patchcore"):
        return ("seed", "image", "model"), (*YARDSTICKS, "flows/experiments/patchcore.py")
    own = (
        "flows/experiments/baselines.py",
        "pvqae/calibration/normals.py",
        *(f"pvqae/inference/{name}.py" for name in ("measures", "readout")),
    )
    return ("seed", "image", "model", "memory"), (*YARDSTICKS, *own)


def _tensors(entry: Entry) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {"scores": entry.scores}
    if entry.counts:
        tensors["length"] = np.array([len(c.bins) for c in entry.counts])
        joined = zip(PixelCounts._fields, zip(*entry.counts, strict=True), strict=True)
        tensors |= {name: np.concatenate(values) for name, values in joined}
    return tensors


def _read(place: Path) -> Entry:
    facts = json.loads(place.with_suffix(".json").read_text("utf-8"))
    tensors = load(place.with_suffix(".safetensors").read_bytes())
    counts = []
    if "length" in tensors:
        ends = np.cumsum(tensors["length"])[:-1]
        parts = (np.split(tensors[name], ends) for name in PixelCounts._fields)
        counts = [PixelCounts(*values) for values in zip(*parts, strict=True)]
    return Entry(facts, tensors["scores"], counts)
