"""Compare ours with the yardsticks on the same manifests, splits, seeds and metrics, with intervals.

Every run of it on real data is a look at test sets: settings are chosen before, not with it.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from flows.experiments import bootstrap
from flows.experiments.benchmark import FIGURES, METHODS, OURS, BenchmarkResult, entry
from flows.experiments.bootstrap import Interval
from flows.experiments.page import markdown
from flows.experiments.subjects import Subject
from flows.experiments.trial import BenchmarkContext
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text
from pvqae.core.progress import track
from pvqae.samples.manifest import write_csv

_Floats = NDArray[np.float64]
MEAN = "mean"
QUICK = ("image.size=128", "memory.codes=128", "memory.patches=4000", "train.steps=4", "prior.steps=5")
_COSTS = ("train_seconds", "megabytes", "milliseconds")
# Untrained codes are our own memory: whether training is worth its seconds is a question of its own.
_RIVALS = tuple(method for method in METHODS if method not in (OURS, "covering"))
NAMES = {
    OURS: "pvqae",
    "patchcore_1": "PatchCore 1 %",
    "patchcore_10": "PatchCore 10 %",
    "patchcore_1_raw": "PatchCore 1 %, unscaled channels",
    "control": "no model",
    "covering": "covering codes, untrained",
}
_TITLES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
_EXPLAINED = """\
Value (95 % interval): mean over seeds; bootstrap over groups (physical parts), groups with and without a defect drawn
apart, the same draws for all detectors and seeds. Differences are paired; "best yardstick" is the one with the highest
value on these same images, which favours it. The untrained covering codes are our own memory, hence no yardstick.
Seconds: training and fitting, without reading images and the frozen backbone. MB: millions of bytes a class needs
beyond the frozen backbone, half precision. ms: from a file to its score, median. All in one process, one after another.
PatchCore: the two finest levels pooled over 3x3, greedy coreset chosen in 64 random dimensions, nearest distance,
9-neighbour re-weighting, maximum; channels scaled to unit spread unless said. Its coreset is exact up to 3e9 distances,
beyond that it is chosen in random parts. No model: residual to the training mean of the place, whitened.
"""


@dataclass(frozen=True)
class _Line:
    """A detector on a class, or on the mean of the classes; figures are means over seeds, None where undefined."""

    category: str
    method: str
    figures: dict[str, Interval | None]  # FIGURES
    costs: dict[str, float]  # _COSTS


@dataclass(frozen=True)
class _Gap:
    """Ours minus another, paired by class, seed and draw."""

    category: str
    figure: str
    other: str
    best: bool  # the best yardstick of this row, chosen by its value on the same images: that favours it
    difference: Interval


@dataclass(frozen=True, eq=False)
class AccuracyResult:
    """The lines of both tables."""

    lines: list[_Line]
    gaps: list[_Gap]
    seeds: tuple[int, ...]
    draws: int
    notes: list[str]

    def show(self, console: Console | None = None) -> None:
        """Print both tables."""
        console = console or Console()
        for title, heads, cells in self._tables():
            table = Table(*heads, title=title)
            for row in cells:
                table.add_row(*row)
            console.print(table)
        for note in self.notes:
            console.print(note, markup=False)

    def write(self, out: Path) -> None:
        """Write accuracy.md, accuracy.json and accuracy.csv below `out`."""
        parts = ["\n".join([f"## {title}", "", *markdown(heads, cells), ""]) for title, heads, cells in self._tables()]
        notes = "".join(f"* {note}\n" for note in self.notes)
        write_text(out / "accuracy.md", "\n".join([*parts, _EXPLAINED, notes]))
        lines, gaps = [asdict(line) for line in self.lines], [asdict(gap) for gap in self.gaps]
        values = {"seeds": self.seeds, "draws": self.draws, "lines": lines, "notes": self.notes, "gaps": gaps}
        write_text(out / "accuracy.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
        write_csv(pd.DataFrame(_flat(line) for line in self.lines), out / "accuracy.csv")

    def _tables(self) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
        heads = ("class", "detector", *_TITLES.values(), "train s", "MB", "ms/image")
        lines: list[Sequence[str]] = []
        for line in self.lines:
            intervals = (line.figures[figure] for figure in FIGURES)
            shown = ("-" if interval is None else str(interval) for interval in intervals)
            lines.append((line.category, NAMES[line.method], *shown, *(f"{line.costs[c]:.1f}" for c in _COSTS)))
        gaps: list[Sequence[str]] = []
        for gap in self.gaps:
            if gap.best or gap.other == "covering":
                found = gap.difference
                signed = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
                what = "best yardstick" if gap.best else "without training"
                gaps.append((gap.category, _TITLES[gap.figure], NAMES[gap.other], signed, what))
        title = f"Accuracy, seeds {', '.join(map(str, self.seeds))}, {self.draws} bootstrap draws"
        gap_heads = ("class", "figure", "pvqae minus", "difference", "")
        return [(title, heads, lines), ("Paired differences", gap_heads, gaps)]


def _flat(line: _Line) -> dict[str, Any]:
    flat: dict[str, Any] = {"class": line.category, "detector": line.method}
    for figure, interval in line.figures.items():
        ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
        flat |= dict(zip((figure, f"{figure}_low", f"{figure}_high"), ends, strict=True))
    return flat | line.costs


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A figure's value, and its value in each draw."""

    value: float
    draws: _Floats

    def minus(self, other: "_Drawn") -> Interval:
        return bootstrap.interval(self.value - other.value, self.draws - other.draws)


_Table = dict[tuple[str, str], dict[str, _Drawn]]  # (class, method) → figure; what is undefined is left out
_CostTable = dict[tuple[str, str], dict[str, float]]


def run(
    subjects: Sequence[Subject],
    params: config.Params,
    seeds: Sequence[int],
    work: Path,
    draws: int = bootstrap.DRAWS,
    methods: Sequence[str] = METHODS,
    tell: Callable[[str], None] = print,
) -> AccuracyResult:
    """Measure every method on every class with every seed; results below `work` are kept and found again."""
    drawn: _Table = {}
    costs: _CostTable = {}
    tasks = [(subject, method) for subject in subjects for method in methods]
    context: BenchmarkContext | None = None
    for subject, method in track(tasks, "bench accuracy", total=len(tasks)):
        if context is None or context.subject is not subject:
            context = BenchmarkContext(subject, params, work)  # views of a class are up to gigabytes: one at a time
            weights = bootstrap.weights(list(context.test["group_id"]), context.defect, draws, name=subject.name)
        entries = []
        for seed in seeds:
            entries.append(entry(context, method, seed))
            shown = ", ".join(f"{key} {value:.4g}" for key, value in entries[-1].facts.items() if value is not None)
            tell(f"{subject.name} {method} seed {seed}: {shown}")
        drawn[subject.name, method] = _figures(context, entries, weights)
        costs[subject.name, method] = {c: float(np.mean([e.facts[c] for e in entries])) for c in _COSTS}
    names = [subject.name for subject in subjects]
    for method in methods:
        drawn[MEAN, method] = _mean([drawn[name, method] for name in names])
        costs[MEAN, method] = {c: float(np.mean([costs[name, method][c] for name in names])) for c in _COSTS}
    rows = names if len(names) == 1 else [*names, MEAN]
    lines = [_Line(name, m, _intervals(drawn[name, m]), costs[name, m]) for name in rows for m in methods]
    gaps = [gap for name in rows for figure in FIGURES for gap in _gaps(drawn, name, figure, methods)]
    return AccuracyResult(lines, gaps, tuple(seeds), draws, [_anomalib()])


def known_methods(asked: Sequence[str]) -> tuple[str, ...]:
    """Return `asked`, or all methods where none is. Raises `ConfigError` for an unknown one."""
    if unknown := sorted(set(asked) - set(METHODS)):
        raise ConfigError(f"--methods: expected some of {', '.join(METHODS)}, found {', '.join(unknown)}")
    return tuple(asked) or METHODS


def _figures(context: BenchmarkContext, entries: list[BenchmarkResult], weights: _Floats) -> dict[str, _Drawn]:
    """Average over seeds; every seed sees the same draws."""
    images = [bootstrap.image_aurocs(context.defect, one.scores, weights) for one in entries]
    pixels = [bootstrap.pixel_figures(one.counts, weights) for one in entries if one.counts]
    draws = {"image_auroc": images, "pixel_auroc": [p[0] for p in pixels], "aupro": [p[1] for p in pixels]}
    values = {figure: [one.facts[figure] for one in entries] for figure in FIGURES}
    defined = [figure for figure in FIGURES if None not in values[figure]]
    return {f: _Drawn(float(np.mean(values[f])), np.mean(draws[f], axis=0)) for f in defined}


def _mean(classes: list[dict[str, _Drawn]]) -> dict[str, _Drawn]:
    """Average each figure plainly over the classes that have it."""
    out = {}
    for figure in FIGURES:
        if parts := [found[figure] for found in classes if figure in found]:
            value = float(np.mean([part.value for part in parts]))
            out[figure] = _Drawn(value, np.mean([part.draws for part in parts], axis=0))
    return out


def _intervals(found: dict[str, _Drawn]) -> dict[str, Interval | None]:
    return {f: bootstrap.interval(found[f].value, found[f].draws) if f in found else None for f in FIGURES}


def _gaps(drawn: _Table, name: str, figure: str, methods: Sequence[str]) -> list[_Gap]:
    """Compare ours with every other detector of a row."""
    found = {method: drawn[name, method][figure] for method in methods if figure in drawn[name, method]}
    ours = found.pop(OURS, None)
    if ours is None:
        return []
    best = max((method for method in _RIVALS if method in found), key=lambda m: found[m].value, default="")
    return [_Gap(name, figure, method, method == best, ours.minus(other)) for method, other in found.items()]


def _anomalib() -> str:
    """Say whether anomalib's own PatchCore could be put next to ours: it needs torchvision."""
    try:
        importlib.import_module("anomalib.models")
    except Exception as error:  # whatever a foreign package raises while it is imported
        return f"anomalib's PatchCore: not available: {type(error).__name__}: {error}"
    return "anomalib's PatchCore: installed, but this bench doesn't run it"
