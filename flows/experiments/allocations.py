"""Does the allocation know which resolution's distance counts where? The rows of one run; what is compared is in
`flows.experiments.allocation`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from flows.experiments import allocation, bench_views, trial
from flows.experiments.allocation import Seen, Table
from flows.experiments.subjects import Subject
from pvqae.calibration import choice, fitting
from pvqae.core import config
from pvqae.datasets import folds
from pvqae.features.examples import Examples
from pvqae.inference.measures import Networks
from pvqae.inference.scoring import Scorer
from pvqae.model import backbones
from pvqae.samples import geometry, images

NORMALS = 40  # unseen ones, that choose
Rows = dict[str, dict[str, float | None]]
Way = tuple[str, Table, str]  # the row's name, the table, whose allocation


def rows(params: config.Params, subject: Subject, work: Path) -> Rows:
    """Image and cell AUROC on the test, by what decides."""
    backbone = backbones.make(params.model).eval()
    normals, test = trial.normal_rows(subject.rows, params.calibration), trial.test_rows(subject.rows)
    every = bench_views.examples_of(normals, subject.root, params, backbone, work / "views")
    learnt = every.subset(torch.from_numpy(folds.learns(normals, folds.FULL)))
    networks = replace(trial.trained(params, learnt, work, backbone), prior_measure=params.score.prior)
    fit = folds.names(normals)[-1]  # a fit that has unseen normals
    held_out = list(_held_out(_scorer(networks, every, normals, params, fit), normals, fit, subject.root))
    judged = list(_judged(_scorer(networks, every, normals, params, folds.FULL), test, subject.root))
    ways = _ways(params.model.levels)
    every_table = [*allocation.tables(params.model.levels), *(table for _, table, _ in ways)]
    unit = allocation.units(held_out, {counted for table in every_table for counted in table})
    found: Rows = {}
    for name, table, budget in [*ways, *_chosen(held_out, judged, unit, params)]:
        reached = allocation.judge(judged, table, budget, unit, params.score.top)
        found[name] = {"image_auroc": reached.image_auroc, "pixel_auroc": reached.pixel_auroc}
    return found


def _scorer(networks: Networks, every: Examples, normals: pd.DataFrame, params: config.Params, fit: str) -> Scorer:
    seen = every.subset(torch.from_numpy(folds.learns(normals, fit)))
    return fitting.fit(networks, seen, fitting.group_numbers(normals, seen), params, fit).scorer


def _held_out(scorer: Scorer, normals: pd.DataFrame, fit: str, root: Path) -> Iterator[Seen]:
    """Normals that the fit has not seen, each once more with every synthetic defect of the product's choice."""
    unseen = normals[folds.judges(normals, fit)]
    some = unseen.iloc[:: max(1, len(unseen) // NORMALS)].head(NORMALS)
    for row in some.to_dict("records"):
        normal = images.read(row["path"], root, scorer.image.bits)
        for kind, picture, mask in choice.with_defects(row["sample_id"], normal):
            yield allocation.seen(scorer, kind, picture, mask)


def _judged(scorer: Scorer, test: pd.DataFrame, root: Path) -> Iterator[Seen]:
    """Test images; all defects are of one kind, as for the image AUROC of a report."""
    for row in test.to_dict("records"):
        picture = images.read(row["path"], root, scorer.image.bits)
        mask = geometry.mask_of(row["mask_path"], picture.shape[:2], root)
        yield allocation.seen(scorer, "defect" if row["label"] == "defect" else "", picture, mask)


def _ways(levels: int) -> list[Way]:
    names = ("all levels everywhere", "the finest two everywhere", "the finest everywhere")
    fixed = [(name, table, "expected") for name, table in zip(names, allocation.fixed(levels), strict=True)]
    own, up = allocation.own_level(levels), allocation.up_to_own(levels)
    literal = [
        (f"{words}, {budget} budget", table, budget)
        for budget in ("expected", "spent")
        for words, table in (("its own level", own), ("levels up to its own", up))
    ]
    return fixed + literal


def _chosen(held_out: list[Seen], judged: list[Seen], unit: allocation.Units, params: config.Params) -> Iterator[Way]:
    """What held-out normals choose; the last row chooses on the test itself, to say what there is to win."""
    levels, top = params.model.levels, params.score.top
    yield (
        "chosen: one for all",
        allocation.choose(held_out, allocation.fixed(levels), "expected", unit, top),
        "expected",
    )
    for budget in ("expected", "spent"):
        table = allocation.choose(held_out, allocation.tables(levels), budget, unit, top)
        yield f"chosen by the {budget} budget", table, budget
    hindsight = allocation.choose(judged, allocation.tables(levels), "expected", unit, top)
    yield "hindsight, expected budget (chosen on the test)", hindsight, "expected"
