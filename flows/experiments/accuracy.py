"""Compare ours with the yardsticks on the same manifests, splits, seeds and metrics, with intervals.

Every run of it on real data is a look at test sets: settings are chosen before, not with it.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.experiments import bootstrap
from flows.experiments.bench_subjects import Subject
from flows.experiments.bootstrap import Interval
from flows.experiments.contest import FIGURES, METHODS, OURS, Entry, Ring
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.progress import track

Floats = NDArray[np.float64]
MEAN = "mean"
COSTS = ("train_seconds", "megabytes", "milliseconds")
# Untrained codes are our own memory: whether training is worth its seconds is a question of its own.
RIVALS = tuple(method for method in METHODS if method not in (OURS, "covering"))
QUICK = ("image.size=128", "memory.codes=128", "memory.patches=4000", "train.steps=4", "prior.steps=5")


@dataclass(frozen=True)
class Line:
    """A detector on a class, or on the mean of the classes; figures are means over seeds, None where undefined."""

    category: str
    method: str
    figures: dict[str, Interval | None]  # FIGURES
    costs: dict[str, float]  # COSTS


@dataclass(frozen=True)
class Gap:
    """Ours minus another, paired by class, seed and draw."""

    category: str
    figure: str
    other: str
    best: bool  # the best yardstick of this row, chosen by its value on the same images: that favours it
    difference: Interval


@dataclass(frozen=True, eq=False)
class Result:
    lines: list[Line]
    gaps: list[Gap]
    seeds: tuple[int, ...]
    draws: int
    notes: list[str]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A figure's value, and its value in each draw."""

    value: float
    draws: Floats


def run(
    subjects: Sequence[Subject],
    params: config.Params,
    seeds: Sequence[int],
    work: Path,
    draws: int = bootstrap.DRAWS,
    methods: Sequence[str] = METHODS,
    tell: Callable[[str], None] = print,
) -> Result:
    """Measure every method on every class with every seed; results below `work` are kept and found again."""
    drawn: dict[tuple[str, str, str], _Drawn] = {}
    costs: dict[tuple[str, str], dict[str, float]] = {}
    tasks = [(subject, method) for subject in subjects for method in methods]
    ring: Ring | None = None
    for subject, method in track(tasks, "bench accuracy", total=len(tasks)):
        if ring is None or ring.subject is not subject:
            ring = Ring(subject, params, work)  # the one before is forgotten: views of a class are up to gigabytes
            groups = list(ring.test["group_id"])
            weights = bootstrap.weights(groups, ring.defect, draws, name=subject.name)
        entries = []
        for seed in seeds:
            entries.append(ring.entry(method, seed))
            tell(_said(subject.name, method, seed, entries[-1]))
        for figure, found in _figures(ring, entries, weights).items():
            drawn[subject.name, method, figure] = found
        costs[subject.name, method] = {c: float(np.mean([e.facts[c] for e in entries])) for c in COSTS}
    names = [subject.name for subject in subjects]
    _add_means(drawn, costs, names, methods)
    rows = names if len(names) == 1 else [*names, MEAN]
    lines = [_line(drawn, costs, name, method) for name in rows for method in methods]
    gaps = [gap for name in rows for figure in FIGURES for gap in _gaps(drawn, name, figure, methods)]
    return Result(lines, gaps, tuple(seeds), draws, [anomalib()])


def known_methods(asked: Sequence[str]) -> tuple[str, ...]:
    """`asked`, or all methods where none is. Raises `ConfigError` for an unknown one."""
    if unknown := sorted(set(asked) - set(METHODS)):
        raise ConfigError(f"--methods: expected some of {', '.join(METHODS)}, found {', '.join(unknown)}")
    return tuple(asked) or METHODS


def _said(name: str, method: str, seed: int, entry: Entry) -> str:
    shown = ", ".join(f"{key} {value:.4g}" for key, value in entry.facts.items() if value is not None)
    return f"{name} {method} seed {seed}: {shown}"


def _figures(ring: Ring, entries: list[Entry], weights: Floats) -> dict[str, _Drawn]:
    """Means over seeds; every seed sees the same draws. Figures that are undefined are left out."""
    images = [bootstrap.image_aurocs(ring.defect, entry.scores, weights) for entry in entries]
    pixels = [bootstrap.pixel_figures(entry.counts, weights) for entry in entries if entry.counts]
    draws = {"image_auroc": images, "pixel_auroc": [p[0] for p in pixels], "aupro": [p[1] for p in pixels]}
    values = {figure: [entry.facts[figure] for entry in entries] for figure in FIGURES}
    defined = [figure for figure in FIGURES if None not in values[figure]]
    return {f: _Drawn(float(np.mean(values[f])), np.mean(draws[f], axis=0)) for f in defined}


def _add_means(
    drawn: dict[tuple[str, str, str], _Drawn],
    costs: dict[tuple[str, str], dict[str, float]],
    names: Sequence[str],
    methods: Sequence[str],
) -> None:
    """The plain mean over the classes that have the figure."""
    for method in methods:
        for figure in FIGURES:
            parts = [drawn[name, method, figure] for name in names if (name, method, figure) in drawn]
            if parts:
                draws = np.mean([part.draws for part in parts], axis=0)
                drawn[MEAN, method, figure] = _Drawn(float(np.mean([part.value for part in parts])), draws)
        costs[MEAN, method] = {c: float(np.mean([costs[name, method][c] for name in names])) for c in COSTS}


def _line(
    drawn: dict[tuple[str, str, str], _Drawn], costs: dict[tuple[str, str], dict[str, float]], name: str, method: str
) -> Line:
    found = {figure: drawn.get((name, method, figure)) for figure in FIGURES}
    intervals = {f: None if d is None else bootstrap.interval(d.value, d.draws) for f, d in found.items()}
    return Line(name, method, intervals, costs[name, method])


def _gaps(drawn: dict[tuple[str, str, str], _Drawn], name: str, figure: str, methods: Sequence[str]) -> list[Gap]:
    """Ours against every other detector of a row."""
    ours = drawn.get((name, OURS, figure))
    others = {m: drawn[name, m, figure] for m in methods if m != OURS and (name, m, figure) in drawn}
    if ours is None or not others:
        return []
    rivals = [method for method in RIVALS if method in others]
    best = max(rivals, key=lambda m: others[m].value) if rivals else ""
    differences = {m: bootstrap.interval(ours.value - d.value, ours.draws - d.draws) for m, d in others.items()}
    return [Gap(name, figure, m, m == best, difference) for m, difference in differences.items()]


def anomalib() -> str:
    """Whether anomalib's own PatchCore could be put beside ours: it needs torchvision."""
    try:
        importlib.import_module("anomalib.models")
    except Exception as error:  # whatever a foreign package raises while it is imported
        return f"anomalib's PatchCore: not available: {type(error).__name__}: {error}"
    return "anomalib's PatchCore: installed, but this bench doesn't run it"
