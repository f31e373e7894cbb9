"""The pieces of a run that measures share; everything is judged through the scorer.

n views; P side of a patch.

One prior for several classes, each with its own network: what the groupings are compared by.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from flows.experiments import bench_views, judging, mechanism, trial
from flows.experiments.subjects import Subject
from pvqae.calibration import fitting
from pvqae.core import config
from pvqae.core.files import write_text
from pvqae.core.tensors import read_tensors
from pvqae.datasets import folds
from pvqae.features import richness
from pvqae.features.examples import Examples
from pvqae.features.examples import views as read_views
from pvqae.inference.measures import Networks
from pvqae.inference.scoring import Scored, Scorer
from pvqae.model import backbones
from pvqae.model.backbones import on_grid
from pvqae.prior import learn, prior
from pvqae.samples import classes
from pvqae.training.losses import costs

Row = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained class with the views that it learnt from and those that judge it."""

    params: config.Params
    subject: Subject
    networks: Networks
    rows: pd.DataFrame  # learnt from
    learnt: Examples
    test: pd.DataFrame
    unseen: Examples
    seconds: float  # of processor time to train network and prior, when that was done


def with_params(params: config.Params, overrides: dict[str, object]) -> config.Params:
    """Params with dotted keys replaced, checked as a params file is."""
    values = params.model_dump(mode="json")
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    return config.parse(values, "the experiment")


def train(params: config.Params, subject: Subject, work: Path) -> Trained:
    """Train a class, or find its finished weights below `work`."""
    backbone = backbones.make(params.model).eval()
    rows, test = trial.learnt_rows(subject.rows, params.calibration), trial.test_rows(subject.rows)
    learnt = _examples(params, rows, subject, backbone, work)
    unseen = _examples(with_params(params, {"train.richness": "none"}), test, subject, backbone, work)
    begun = time.process_time()
    found = trial.trained(params, learnt, work, backbone)
    facts = (
        params.model_dump(mode="json", include={*trial.SAVED, "prior"}),
        subject.name,
        bench_views.source_of("pvqae/training", "pvqae/prior"),
    )
    seconds = _first(work / "seconds" / f"{bench_views.key_of(*facts)}.json", time.process_time() - begun)
    return Trained(params, subject, found, rows, learnt, test, unseen, seconds)


def _first(file: Path, seconds: float) -> float:
    """What it took the first time, when nothing was found finished."""
    if not file.exists():
        write_text(file, json.dumps(round(seconds, 2)))
    return float(json.loads(file.read_text("utf-8")))


def _examples(
    params: config.Params, rows: pd.DataFrame, subject: Subject, backbone: backbones.Backbone, work: Path
) -> Examples:
    """Kept once for all measures of richness: only the costs are computed anew."""
    blind = with_params(params, {"train.richness": "none"})
    found = bench_views.examples_of(rows, subject.root, blind, backbone, work / "views")
    if params.train.richness == "none":
        return found
    cost = torch.cat(list(_costs(params, rows, subject.root)))
    return replace(found, cost=richness.rescale(cost, on_grid(found.valid, cost.shape[-2:])))


def _costs(params: config.Params, rows: pd.DataFrame, root: Path) -> Iterator[Tensor]:
    for _, view in read_views(rows, root, params.image, "richness"):
        yield richness.cost(torch.from_numpy(view.pixels)[None], params.train.richness).half().float()


def patches(params: config.Params, rows: pd.DataFrame, root: Path) -> Tensor:
    """Grey patches n x P x P of the valid coarse cells of all views, in order."""
    found = []
    for _, view in read_views(rows, root, params.image, "patches"):
        cells = richness.patches(torch.from_numpy(view.pixels)[None])
        side = params.image.size // cells.shape[-1]
        found.append(cells[on_grid(torch.from_numpy(view.valid)[None], (side, side)).flatten()])
    return torch.cat(found)


def fitted(found: Trained) -> Scorer:
    """The class's scorer: memory and statistics of the normals learnt from, one read-out for all classes."""
    return trial.plain(found.params, found.networks, found.rows, found.learnt)


def score(found: Trained, from_files: bool = False) -> Iterator[tuple[dict[Any, Any], Scored]]:
    """Each test row with its score; from files a result also has its picture."""
    frozen = found.networks.backbone.spec.frozen and not from_files
    scored = judging.scored_rows(fitted(found), found.test, found.subject.root, found.unseen if frozen else None)
    yield from zip(found.test.to_dict("records"), scored, strict=True)


def judge(found: Trained) -> Row:
    """Figures of the test, and the health of the training."""
    scorer = fitted(found)
    kept = found.unseen if found.networks.backbone.spec.frozen else None
    scored = judging.scored_rows(scorer, found.test, found.subject.root, kept)
    judged = judging.judged(scored, found.test, found.subject.root)
    health = fitting.health(found.networks, found.learnt, _entropies(found))
    values = judging.figures_of(judged, found.params.score.fusion, health)
    kept_values = {key: value for key, value in values.items() if value is None or isinstance(value, int | float)}
    return kept_values | _derived(found, values)


def _derived(found: Trained, values: dict[str, Any]) -> Row:
    shares = values["level_shares"]
    own, table = values["prior_cross_entropy"], values["frequency_cross_entropy"]
    return {
        "spent": float(np.dot(shares, costs(len(shares)).numpy())),
        "least_share": min(shares),
        "cross_entropy": own,
        "prior_gain": None if own is None else table - own,
        "error": mechanism.error_of(found.networks, _normals(found)),
        "seconds": found.seconds,
    } | {f"share_{level}": share for level, share in enumerate(shares)}


def _normals(found: Trained) -> Examples:
    """The test's normals: unseen by network and prior. Every split has some."""
    return found.unseen.subset(torch.from_numpy((found.test["label"] == "normal").to_numpy(copy=True)))


def _entropies(found: Trained) -> Row:
    """Nats per cell of their levels, under the prior and under the frequency table."""
    seen, unseen = (mechanism.logits_of(found.networks, x) for x in (found.learnt, _normals(found)))
    own, table = learn.cross_entropies(found.networks.prior, seen, unseen)
    return {"prior_cross_entropy": own, "frequency_cross_entropy": table}


def judge_grouped(params: config.Params, members: list[Trained], work: Path) -> Row:
    """`judge` the first of `members` with the prior of the group that `prior.grouping` puts it in; size and time of
    that prior."""
    found = members[0]
    groups = classes.GROUPINGS[params.prior.grouping]([member.subject.name for member in members])
    mates = next(names for names in groups.values() if found.subject.name in names)
    chosen = sorted((m for m in members if m.subject.name in mates), key=lambda m: m.subject.name)
    learned = _group_prior(params, chosen, work)
    grouped = replace(found, networks=replace(found.networks, prior=learned))
    size = sum(x.numel() * x.element_size() for x in learned.state_dict().values()) / 1e6
    return judge(grouped) | {"megabytes": size, "milliseconds": _milliseconds(grouped)}


def _group_prior(params: config.Params, members: list[Trained], work: Path) -> prior.Prior:
    pairs = [mechanism.logits_of(member.networks, member.learnt) for member in members]
    logits, valid = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    key = bench_views.key_of(
        params.seed,
        params.prior.model_dump(mode="json"),
        _digest(logits),
        bench_views.source_of("pvqae/training", "pvqae/prior"),
    )
    file = work / "priors" / f"{key}.safetensors"
    if not file.exists():
        learned = learn.fit_group(params, folds.FULL, logits, valid, [])
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in learned.state_dict().items()}, part)
        part.replace(file)
    grid = (logits.shape[-2], logits.shape[-1])
    return prior.from_tensors(read_tensors(file), grid, params.model.levels, params.prior.width)


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def _milliseconds(found: Trained, repeats: int = 10) -> float:
    """Of the prior's expectation for one view, median."""
    logits, valid = mechanism.logits_of(found.networks, found.unseen.subset(torch.arange(len(found.test)) == 0))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        prior.expect(found.networks.prior, logits, valid)
        times.append((time.perf_counter() - begun) * 1000)
    return float(np.median(times))
