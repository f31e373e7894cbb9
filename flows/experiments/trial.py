"""Train, fit and judge one class under one set of params. Calibration takes no part.

All scores come through the scorer, as those of `pvqae evaluate` do. Not a stage: it reads manifest rows and writes only
below a work folder, where views, weights and priors are kept by the hash of what they depend on. n test images.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flows.experiments import mechanism, subjects
from flows.experiments.subjects import Subject, key_of, source_of
from pvqae.calibration import calibrate, fitting
from pvqae.core import config, runtime
from pvqae.core.errors import DataError
from pvqae.core.files import write_tensors
from pvqae.core.progress import track
from pvqae.core.tensors import read_tensors
from pvqae.datasets import splits
from pvqae.evaluation import figures, stage
from pvqae.evaluation.metrics import PixelCounts, PixelMetrics
from pvqae.evaluation.stage import Judgeable
from pvqae.features.examples import Examples, prepare, quantise
from pvqae.inference import bundle
from pvqae.inference.measures import Allocator, Networks
from pvqae.inference.scoring import Scored, Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.model.backbones import Backbone, on_grid
from pvqae.prior import learn
from pvqae.prior.prior import Prior, from_tensors
from pvqae.samples.images import Floats, read
from pvqae.training import loop, network
from pvqae.training.run import start

Values = dict[str, Any]
# The code that decides what trained weights are, and the sections of the params that do; the precision does, too.
SOURCES = (*subjects.VIEW_SOURCES, "pvqae/training", "pvqae/prior", "pvqae/core/runtime.py", "pvqae/core/seeding.py")
SAVED = ("seed", "image", "model", "train")
_REPEATS = 5  # images whose scoring is timed


@dataclass(frozen=True, eq=False)
class JudgedClass:
    """What a detector says of test images, against labels and masks."""

    scores: pd.DataFrame  # sample_id, group_id, label, kind, image_score, and s_prior, s_recon, product of the scorer
    pixels: dict[str, PixelMetrics]  # by map, "fused" first; empty without masks
    counts: list[PixelCounts]  # n, of the fused map; empty without masks

    def figures(self, fusion: str, health: Values) -> Values:
        """Return the figures as metrics.json has them; what needs a threshold is None."""
        values = figures.of_class(self.scores, self.pixels, math.nan, fusion, health)
        kinds = {kind: facts | {"miss_rate": None} for kind, facts in values["kinds"].items()}
        return values | dict.fromkeys(("threshold", "false_alarm_rate", "miss_rate")) | {"kinds": kinds}


@dataclass(frozen=True, eq=False)
class TrialResult:
    """One trial."""

    figures: Values
    scores: pd.DataFrame
    megabytes: float  # of the bundle: what a class needs beyond the frozen backbone
    milliseconds: float  # from a file to its score, median


@dataclass(frozen=True, eq=False)
class BenchmarkContext:
    """A class ready to be measured: its views are read at first use and shared by all detectors and seeds.

    Detectors learn from the normals of train and calibrate, or of train alone where the class is large enough for that
    (`splits.assign_folds`). They are judged on split test. Raises `DataError` where one of these is empty or not one
    class.
    """

    subject: Subject
    params: config.Params
    work: Path
    keep: bool = True  # views on disk; without, they are read anew by every context

    @cached_property
    def normals(self) -> pd.DataFrame:
        """The normals of train and calibrate, with the column `fold`."""
        rows = self.subject.rows
        normals = rows[rows["split"].isin(["train", "calibrate"]) & (rows["label"] == "normal")]
        if normals["category"].nunique() != 1:
            names = sorted(set(normals["category"]))
            raise DataError(f"expected normals of one class to learn from, found {names}; select the rows of one class")
        return splits.assign_folds(normals.reset_index(drop=True), self.params.calibration)

    @cached_property
    def test(self) -> pd.DataFrame:
        """The rows of split test."""
        kept = self.subject.rows[self.subject.rows["split"] == "test"].reset_index(drop=True)
        if kept.empty:
            raise DataError(f"{self.subject.name}: no rows of split test; build the manifest with test images")
        return kept

    @cached_property
    def defect(self) -> NDArray[np.bool_]:
        """Labels of the test rows, n."""
        return (self.test["label"] == "defect").to_numpy(np.bool_, copy=True)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, untrained unless it is a frozen one."""
        found = backbones.make(self.params.model, size=self.params.image.size).eval()
        quantise(found, self.normals, self.subject.root, self.params)
        return found

    def views(self, rows: pd.DataFrame) -> Examples:
        """Read the views of some rows of the class."""
        if not self.keep:
            image, richness = self.params.image, self.params.train.richness
            return prepare(rows, self.subject.root, image, self.backbone, richness)
        return subjects.examples_of(rows, self.subject.root, self.params, self.backbone, self.work / "views")

    @cached_property
    def every(self) -> Examples:
        """The views of `normals`."""
        return self.views(self.normals)

    @cached_property
    def examples(self) -> Examples:
        """The views learnt from."""
        return self.every.subset(torch.from_numpy(splits.learns(self.normals, splits.FULL)))

    @cached_property
    def unseen(self) -> Examples:
        """The views of `test`."""
        return self.views(self.test)

    def scorer(self, params: config.Params | None = None) -> Scorer:
        """Train and fit as a class is shipped; `params` may have another seed."""
        params = params or self.params
        return self._fitted(params, trained(params, self.examples, self.work, self.backbone))

    def _fitted(self, params: config.Params, found: Networks) -> Scorer:
        """Fit memories and statistics."""
        full = {splits.FULL: found if found.allocator is None else found.allocating(measure=params.score.prior)}
        return calibrate.fit_all(full, self.every, self.normals, params, self.subject.root)[splits.FULL]

    def outcome(self) -> TrialResult:
        """Train, fit and judge."""
        found = trained(self.params, self.examples, self.work, self.backbone)
        scorer = self._fitted(self.params, found)
        judgement = self.judge(score_rows(scorer, self.test, self.subject.root, self.unseen))
        normal = self.unseen.subset(torch.from_numpy(~self.defect))
        health = fitting.health(found, self.examples, entropies(found, self.examples, normal))
        return TrialResult(
            judgement.figures(self.params.score.fusion, health),
            judgement.scores,
            megabytes(scorer, self.params, health),
            self.milliseconds(scorer.one),
        )

    def judge(self, scored: Iterable[Judgeable]) -> JudgedClass:
        """Judge one result for each test row, in their order."""
        return judge(scored, self.test, self.subject.root)

    def milliseconds(self, score: Callable[[Floats], object], clock: Callable[[], float] = time.perf_counter) -> float:
        """Measure the median from a file to its score by a `clock` of seconds, after one warm-up."""
        times = []
        for path in [self.test["path"].iloc[0], *self.test["path"].iloc[:_REPEATS]]:
            begun = clock()
            score(read(path, self.subject.root, self.params.image.bits))
            times.append((clock() - begun) * 1000)
        return round(median(times[1:]), 2)


def judge(scored: Iterable[Judgeable], rows: pd.DataFrame, data_root: Path) -> JudgedClass:
    """Judge one result for each of `rows` against labels and masks; raises `DataError` as `stage.judge` does."""
    pixels: dict[str, PixelMetrics] = {}
    table, counts = {}, {}  # of the results themselves nothing stays: they hold maps
    for one in stage.judge(rows, track(scored, "judging", total=len(rows)), data_root, pixels):
        facts = {key: one.row[key] for key in ("sample_id", "group_id", "label", "kind")}
        table[one.item.sample_id] = facts | one.scores
        if one.counts is not None:
            counts[one.item.sample_id] = one.counts
    order = list(rows["sample_id"])
    return JudgedClass(pd.DataFrame([table[s] for s in order]), pixels, [counts[s] for s in order if s in counts])


def score_rows(scorer: Scorer, rows: pd.DataFrame, root: Path, views: Examples | None) -> Iterator[Scored]:
    """Score each image of `rows` in order, from `views` of a frozen backbone, or from its file and with its picture."""
    ids = list(rows["sample_id"])
    if views is None or not scorer.networks.backbone.spec.frozen:
        yield from scorer.many(zip(ids, rows["path"], strict=True), root)
        return
    for one in subjects.each_image(views, rows, scorer.image):
        yield scorer.from_features(one.features, one.valid, one.canvas, ids[one.row])


def trained(
    params: config.Params, examples: Examples, work: Path, backbone: Backbone, until: int | None = None
) -> Networks:
    """Train network and prior, memory still empty; finished and half-finished work below `work` is resumed.

    With `train.steps: 0` neither is trained. `until`: the network as it is after so many of its steps.
    """
    if params.train.steps == 0:
        return Networks(backbone, None, {}, None)
    plan = runtime.plan(params.compute, 1)
    facts = params.model_dump(mode="json", include=set(SAVED))
    key = key_of(facts, plan.device, plan.precision, subjects.digest_of(examples), source_of(*SOURCES))
    folder = work / "networks" / key
    weights = _weights(params, plan, examples, folder, until)
    autoencoder = Autoencoder.from_tensors(read_tensors(weights), params.model, backbone)
    learned = _prior(params, plan, examples, weights, folder)
    return Networks(backbone, Allocator(autoencoder, learned, params.score.prior), {}, None)


def _weights(params: config.Params, plan: runtime.Plan, examples: Examples, folder: Path, until: int | None) -> Path:
    finished = folder / ("weights.safetensors" if until is None else f"weights-{until}.safetensors")
    if not finished.exists():
        run = start(params, plan, splits.FULL)
        loop.fit(run, examples, folder, f"network, seed {params.seed}", until)
        kept = {k: v for k, v in run.modules.state_dict().items() if not k.startswith("discriminator.")}
        write_tensors(finished, {k: network.half(v) for k, v in kept.items()})
    return finished


def _prior(params: config.Params, plan: runtime.Plan, examples: Examples, weights: Path, folder: Path) -> Prior:
    file = folder / f"prior-{key_of(params.prior.model_dump(mode='json'), weights.name)}.safetensors"
    logits = network.allocations(params, plan, read_tensors(weights), examples).float()
    grid = (logits.shape[-2], logits.shape[-1])
    if not file.exists():
        learned = learn.fit(params, splits.FULL, logits, on_grid(examples.valid, grid), [])
        write_tensors(file, {k: v.contiguous() for k, v in learned.state_dict().items()})
    return from_tensors(read_tensors(file), grid, params.model.levels, params.prior.width)


def entropies(found: Networks, learnt: Examples, normal: Examples) -> dict[str, float | None]:
    """Nats per cell of the levels of unseen normals, under the prior and under the frequency table."""
    names = ("prior_cross_entropy", "frequency_cross_entropy")
    if found.allocator is None or not len(normal):
        return dict.fromkeys(names)
    pairs = [mechanism.logits_of(found, part) for part in (learnt, normal)]
    return dict(zip(names, learn.cross_entropies(found.trained.prior, *pairs), strict=True))


def megabytes(scorer: Scorer, params: config.Params, health: Values) -> float:
    """Return the size of the bundle on disk, millions of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        bundle.save(place, scorer, params, "trial", health, {})
        return round(sum(file.stat().st_size for file in place.iterdir()) / 1e6, 3)
