"""One class, one set of params, one fit: train, fit, judge. For experiments and benches; calibration takes no part.

`run` does all of it. Its pieces are for whoever varies only one part: `views.examples_of`, `trained`, `fitted`,
`scored_rows`, `judged`. All scores come through the scorer, as those of `pvqae evaluate` do. Not a stage: it reads
manifest rows and writes only below `work`, where views, weights and priors are kept by the hash of what they depend on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flows.experiments import bench_views, judging, mechanism
from flows.experiments.judging import Judged, figures_of, judged, scored_rows
from pvqae.calibration import calibrate, choice, fitting
from pvqae.core import config, runtime
from pvqae.core.errors import DataError
from pvqae.core.files import write_tensors
from pvqae.core.tensors import read_tensors
from pvqae.datasets import folds
from pvqae.features.examples import Examples
from pvqae.inference.measures import Networks
from pvqae.inference.scoring import Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import load_autoencoder
from pvqae.model.backbones import Backbone, on_grid
from pvqae.prior import learn
from pvqae.prior.prior import Prior, load_prior
from pvqae.training import loop, network
from pvqae.training.run import start

__all__ = [
    "Judged",
    "Outcome",
    "figures_of",
    "fitted",
    "judged",
    "learnt_rows",
    "normal_rows",
    "run",
    "scored_rows",
    "test_rows",
    "trained",
]
Values = dict[str, Any]
# The code that decides what trained weights are.
SOURCES = (*bench_views.SOURCES, "pvqae/training", "pvqae/prior", "pvqae/core/runtime.py", "pvqae/core/seeding.py")
SAVED = ("seed", "image", "model", "train")  # the sections that they depend on, beside the precision


@dataclass(frozen=True, eq=False)
class Outcome:
    """One trial."""

    figures: Values  # the keys of metrics.json's classes; None for what calibration decides
    judged: Judged
    seconds: dict[str, float]  # read, train, fit, judge; small where earlier work was found
    megabytes: float  # of the bundle: what a class needs beyond the frozen backbone
    milliseconds: float  # from a file to its score, median

    @property
    def scores(self) -> pd.DataFrame:
        return self.judged.scores

    @property
    def level_shares(self) -> list[float]:
        """Shares of the cells of the normals learnt from, coarse to fine."""
        shares: list[float] = self.figures["level_shares"]
        return shares

    @property
    def prior_cross_entropy(self) -> float | None:
        """Nats per cell of the test's normals: no other normals are unseen here."""
        value: float | None = self.figures["prior_cross_entropy"]
        return value

    @property
    def frequency_cross_entropy(self) -> float | None:
        value: float | None = self.figures["frequency_cross_entropy"]
        return value


def run(params: config.Params, rows: pd.DataFrame, data_root: Path, work: Path) -> Outcome:
    """Train on the normals of one class and judge its test rows.

    `rows` are its manifest rows, paths below `data_root`: learnt from are the normals of train and calibrate, or of
    train alone where the class is large enough for that (`folds`), judged is split test. Raises `DataError` where one
    of these is empty or not one class.
    """
    normals, test = normal_rows(rows, params.calibration), test_rows(rows)
    backbone = backbones.make(params.model).eval()
    clock = judging.Clock()
    every = bench_views.examples_of(normals, data_root, params, backbone, work / "views")
    examples = every.subset(torch.from_numpy(folds.learns(normals, folds.FULL)))
    unseen = (
        bench_views.examples_of(test, data_root, params, backbone, work / "views") if backbone.spec.frozen else None
    )
    clock.lap("read")
    found = trained(params, examples, work, backbone)
    clock.lap("train")
    scorer = fitted(params, found, normals, every, data_root)
    clock.lap("fit")
    judgement = judged(scored_rows(scorer, test, data_root, unseen), test, data_root)
    clock.lap("judge")
    facts = _entropies(params, found, examples, test, data_root, unseen, work)
    health = fitting.health(found, examples, facts)
    return Outcome(
        figures_of(judgement, params.score.fusion, health),
        judgement,
        clock.seconds,
        judging.megabytes(scorer, params, health),
        judging.milliseconds(scorer.one, test, data_root, params.image.bits),
    )


def normal_rows(rows: pd.DataFrame, calibration: config.Calibration) -> pd.DataFrame:
    """The normals of train and calibrate, with the column `fold`."""
    normals = rows[rows["split"].isin(["train", "calibrate"]) & (rows["label"] == "normal")]
    if normals["category"].nunique() != 1:
        names = sorted(set(normals["category"]))
        raise DataError(f"expected normals of one class to learn from, found {names}; filter")
    return folds.assign(normals.reset_index(drop=True), calibration)


def learnt_rows(rows: pd.DataFrame, calibration: config.Calibration) -> pd.DataFrame:
    """The rows that the shipped fit learns from."""
    assigned = normal_rows(rows, calibration)
    return assigned[folds.learns(assigned, folds.FULL)].reset_index(drop=True)


def test_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of split test."""
    kept = rows[rows["split"] == "test"].reset_index(drop=True)
    if kept.empty:
        raise DataError("expected rows with split test, found none; build the manifest with test images")
    return kept


def trained(params: config.Params, examples: Examples, work: Path, backbone: Backbone | None = None) -> Networks:
    """Network and prior, memory still empty; finished and half-finished work below `work` is resumed."""
    backbone = backbone or backbones.make(params.model).eval()
    plan = runtime.plan(params.compute, 1)
    facts = params.model_dump(mode="json", include=set(SAVED))
    key = bench_views.key_of(
        facts, plan.device, plan.precision, bench_views.digest_of(examples), bench_views.source_of(*SOURCES)
    )
    folder = work / "networks" / key
    weights = _weights(params, plan, examples, folder)
    autoencoder = load_autoencoder(read_tensors(weights), params.model, backbone)
    learned = _prior(params, plan, examples, weights, folder)
    return Networks(backbone, autoencoder, learned, (), None, params.score.prior)


def _weights(params: config.Params, plan: runtime.Plan, examples: Examples, folder: Path) -> Path:
    finished = folder / "weights.safetensors"
    if not finished.exists():
        run = start(params, plan, folds.FULL)
        loop.fit(run, examples, folder, f"network, seed {params.seed}")
        kept = {k: v for k, v in run.modules.state_dict().items() if not k.startswith("discriminator.")}
        write_tensors(finished, {k: network.half(v) for k, v in kept.items()})
    return finished


def _prior(params: config.Params, plan: runtime.Plan, examples: Examples, weights: Path, folder: Path) -> Prior:
    file = folder / f"prior-{bench_views.key_of(params.prior.model_dump(mode='json'))}.safetensors"
    logits = network.allocations(params, plan, read_tensors(weights), examples).float()
    grid = (logits.shape[-2], logits.shape[-1])
    if not file.exists():
        learned = learn.fit(params, folds.FULL, logits, on_grid(examples.valid, grid), [])
        write_tensors(file, {k: v.contiguous() for k, v in learned.state_dict().items()})
    return load_prior(file, grid, params.model.levels, params.prior.width)


def fitted(
    params: config.Params, found: Networks, normals: pd.DataFrame, examples: Examples, data_root: Path
) -> Scorer:
    """Memory, statistics and read-out of the shipped fit; `normals` are the class's rows of train and calibrate with
    column `fold`, `examples` their views. The folds that choose the read-out share the one network of the trial."""
    found = replace(found, prior_measure=params.score.prior)
    fits = folds.names(normals) if choice.is_open(params.score) else [folds.FULL]
    return calibrate.fit_all(dict.fromkeys(fits, found), examples, normals, params, data_root)[0][folds.FULL]


def plain(params: config.Params, found: Networks, learnt: pd.DataFrame, examples: Examples) -> Scorer:
    """As `fitted`, but with the preferred read-out instead of a chosen one: `learnt` and `examples` are what the
    shipped fit learns from."""
    found = replace(found, prior_measure=params.score.prior)
    fit = fitting.fit(found, examples, fitting.group_numbers(learnt, examples), params, folds.FULL)
    return fit.reading(choice.settled(params.score))


def _entropies(
    params: config.Params,
    found: Networks,
    examples: Examples,
    test: pd.DataFrame,
    data_root: Path,
    unseen: Examples | None,
    work: Path,
) -> dict[str, float | None]:
    """Of the chosen levels of the test's normals, under the prior and under the frequency table."""
    names = ("prior_cross_entropy", "frequency_cross_entropy")
    normal = torch.from_numpy((test["label"] == "normal").to_numpy(copy=True))
    if not normal.any():
        return dict.fromkeys(names)
    if unseen is None:
        unseen = bench_views.examples_of(test, data_root, params, found.backbone, work / "views")
    pairs = [mechanism.logits_of(found, part) for part in (examples, unseen.subset(normal))]
    return dict(zip(names, learn.cross_entropies(found.prior, *pairs), strict=True))
