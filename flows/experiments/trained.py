"""A trained class as experiments vary it, judged through the scorer with one read-out for all classes.

n views; P side of a patch.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flows.experiments import mechanism, trial
from flows.experiments.catalogue import Row, with_params
from flows.experiments.subjects import Subject, key_of, source_of
from pvqae.calibration import fitting
from pvqae.core import config
from pvqae.core.files import write_tensors, write_text
from pvqae.core.tensors import checksum, read_tensors
from pvqae.datasets import splits
from pvqae.features import richness
from pvqae.features.examples import Examples
from pvqae.features.examples import views as read_views
from pvqae.inference.measures import Networks
from pvqae.inference.scoring import Scored, Scorer
from pvqae.model.backbones import on_grid
from pvqae.prior import learn, prior
from pvqae.samples import classes
from pvqae.training.losses import costs

_LEARNING = ("pvqae/training", "pvqae/prior")


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

    def scorer(self) -> Scorer:
        """Fit memories and statistics to the normals learnt from."""
        found = self.networks.allocating(measure=self.params.score.prior)
        groups = fitting.group_numbers(self.rows, self.learnt)
        return fitting.fit(found, self.learnt, groups, self.params, splits.FULL)

    def scored(self, from_files: bool = False) -> Iterator[tuple[dict[Any, Any], Scored]]:
        """Score each test row; from files a result also has its picture."""
        views = None if from_files else self.unseen
        scored = trial.score_rows(self.scorer(), self.test, self.subject.root, views)
        yield from zip(self.test.to_dict("records"), scored, strict=True)

    def figures(self) -> Row:
        """Judge the test; the health of the training is among the figures."""
        scored = trial.score_rows(self.scorer(), self.test, self.subject.root, self.unseen)
        judged = trial.judge(scored, self.test, self.subject.root)
        entropies = trial.entropies(self.networks, self.learnt, self._normal)
        health = fitting.health(self.networks, self.learnt, entropies)
        values = judged.figures(self.params.score.fusion, health)
        return numbers(values) | self._derived(values)

    def _derived(self, values: dict[str, Any]) -> Row:
        shares = values["level_shares"]
        own, table = values["prior_cross_entropy"], values["frequency_cross_entropy"]
        return {
            "spent": float(np.dot(shares, costs(len(shares)).numpy())),
            "least_share": min(shares),
            "cross_entropy": own,
            "prior_gain": None if own is None else table - own,
            "error": mechanism.error_of(self.networks, self._normal),
            "seconds": self.seconds,
        } | {f"share_{level}": share for level, share in enumerate(shares)}

    @property
    def _normal(self) -> Examples:
        """The test's normals: unseen by network and prior. Every split has some."""
        return self.unseen.subset(torch.from_numpy((self.test["label"] == "normal").to_numpy(copy=True)))

    def use(self) -> Row:
        """Tell how the levels follow what fine codes save."""
        use = mechanism.use(self.networks, self.learnt)
        return {"spearman": use.spearman, "least_share": min(use.shares(self.params.model.levels))}

    def richness(self) -> tuple[Tensor, Tensor]:
        """Return richness (1 - cost) and grey patch, P x P, of every valid coarse cell of the normals learnt from."""
        found = []
        for _, view in read_views(self.rows, self.subject.root, self.params.image, "patches"):
            cells = richness.patches(torch.from_numpy(view.pixels)[None])
            side = self.params.image.size // cells.shape[-1]
            found.append(cells[on_grid(torch.from_numpy(view.valid)[None], (side, side)).flatten()])
        patches = torch.cat(found)
        return 1 - richness.RICHNESS[self.params.train.richness](patches).float(), patches


def numbers(values: dict[str, Any]) -> Row:
    """Keep the figures that are a number, or None where undefined."""
    return {key: value for key, value in values.items() if value is None or isinstance(value, int | float)}


def train(params: config.Params, subject: Subject, work: Path, until: int | None = None) -> Trained:
    """Train a class, or find its finished weights below `work`; `until`: as it is after so many steps."""
    blind = trial.BenchmarkContext(subject, with_params(params, {"train.richness": "none"}), work)
    rows = blind.normals[splits.learns(blind.normals, splits.FULL)].reset_index(drop=True)
    learnt = _with_costs(blind.views(rows), params, rows, subject.root)
    unseen = blind.unseen
    begun = time.process_time()
    found = trial.trained(params, learnt, work, blind.backbone, until)
    took = time.process_time() - begun
    facts = params.model_dump(mode="json", include={*trial.SAVED, "prior"})
    first = work / "seconds" / f"{key_of(facts, subject.name, until, source_of(*_LEARNING))}.json"
    if not first.exists():  # what it took when nothing was found finished
        write_text(first, json.dumps(round(took, 2)))
    seconds = float(json.loads(first.read_text("utf-8")))
    return Trained(params, subject, found, rows, learnt, blind.test, unseen, seconds)


def _with_costs(found: Examples, params: config.Params, rows: pd.DataFrame, root: Path) -> Examples:
    """Compute the costs alone: the views are kept once for all measures of richness."""
    measure = params.train.richness
    if measure == "none":
        return found
    views = read_views(rows, root, params.image, "richness")
    each = (richness.cost(torch.from_numpy(view.pixels)[None], measure).half().float() for _, view in views)
    cost = torch.cat(list(each))
    return replace(found, cost=richness.rescale(cost, on_grid(found.valid, cost.shape[-2:])))


def judge_grouped(params: config.Params, members: list[Trained], work: Path) -> Row:
    """Judge the first of `members` with the prior of the group that `prior.grouping` puts it in.

    Every class keeps its own network. Size and time of that prior are among the figures.
    """
    found = members[0]
    groups = classes.GROUPINGS[params.prior.grouping]([member.subject.name for member in members])
    mates = next(names for names in groups.values() if found.subject.name in names)
    chosen = sorted((m for m in members if m.subject.name in mates), key=lambda m: m.subject.name)
    learned = _group_prior(params, chosen, work)
    grouped = replace(found, networks=found.networks.allocating(prior=learned))
    size = sum(x.numel() * x.element_size() for x in learned.state_dict().values()) / 1e6
    return grouped.figures() | {"megabytes": size, "milliseconds": _milliseconds(grouped)}


def _group_prior(params: config.Params, members: list[Trained], work: Path) -> prior.Prior:
    pairs = [mechanism.logits_of(member.networks, member.learnt) for member in members]
    logits, valid = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    facts = params.prior.model_dump(mode="json")
    key = key_of(params.seed, facts, checksum({"logits": logits}), source_of(*_LEARNING))
    file = work / "priors" / f"{key}.safetensors"
    if not file.exists():
        learned = learn.fit_group(params, splits.FULL, logits, valid, [])
        write_tensors(file, {k: v.contiguous() for k, v in learned.state_dict().items()})
    grid = (logits.shape[-2], logits.shape[-1])
    return prior.from_tensors(read_tensors(file), grid, params.model.levels, params.prior.width)


def _milliseconds(found: Trained, repeats: int = 10) -> float:
    """Measure the prior's expectation for one view, median."""
    logits, valid = mechanism.logits_of(found.networks, found.unseen.subset(torch.arange(len(found.test)) == 0))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        prior.expect(found.networks.trained.prior, logits, valid)
        times.append((time.perf_counter() - begun) * 1000)
    return float(np.median(times))
