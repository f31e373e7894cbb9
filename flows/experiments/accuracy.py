"""Compare ours with the yardsticks and with other libraries on the same manifests, splits, seeds and metrics.

Every run of it on real data is a look at test sets: settings are chosen before, not with it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from flows.experiments import bootstrap
from flows.experiments.benchmark import COSTS, FIGURES, METHODS, OURS, UNTRAINED, BenchmarkResult, entry
from flows.experiments.bootstrap import Interval
from flows.experiments.page import markdown
from flows.experiments.rivals import RIVALS, RivalError, Tell
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
_COMPARED = tuple(figure for figure in FIGURES if figure != "pixel_f1")
NAMES = {
    OURS: "pvqae",
    "patchcore_1": "PatchCore 1 %",
    "patchcore_10": "PatchCore 10 %",
    "patchcore_1_scaled": "PatchCore 1 %, scaled channels",
    "control": "no model",
    UNTRAINED: "covering codes, untrained",
    **{name: rival.title for name, rival in RIVALS.items()},
}
_TITLES = dict(zip(FIGURES, ("image AUROC", "pixel AUROC", "AUPRO", "AUPRO 0.05", "pixel F1"), strict=True))
_COST_TITLES = dict(zip(COSTS, ("fit CPU s", "CPU ms/image", "peak MB", "MB"), strict=True))
_EXPLAINED = Path(__file__).with_suffix(".md").read_text("utf-8")


@dataclass(frozen=True)
class _Line:
    """A detector on a class, or on the mean of the classes; figures are means over seeds, None where undefined."""

    category: str
    method: str
    figures: dict[str, Interval | None]  # FIGURES
    costs: dict[str, float | None]  # COSTS
    failed: str = ""  # why there are none of both


@dataclass(frozen=True)
class _Gap:
    """Ours minus another, paired by class, seed and draw."""

    category: str
    figure: str
    other: str
    best: bool  # the best of the others in this row, chosen by its value on the same images: that favours it
    difference: Interval

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table."""
        found = self.difference
        signed = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
        why = "best" if self.best else "without training" if self.other == UNTRAINED else ""
        return self.category, _TITLES[self.figure], NAMES[self.other], signed, why


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
        heads = ("class", "detector", *_TITLES.values(), *_COST_TITLES.values())
        lines: list[Sequence[str]] = [(line.category, NAMES[line.method], *_values(line)) for line in self.lines]
        shown = [gap.cells() for gap in self.gaps if gap.best or gap.other == UNTRAINED or gap.other in RIVALS]
        title = f"Accuracy, seeds {', '.join(map(str, self.seeds))}, {self.draws} bootstrap draws"
        gap_heads = ("class", "figure", "pvqae minus", "difference", "")
        return [(title, heads, lines), ("Paired differences", gap_heads, [*shown])]


def _values(line: _Line) -> list[str]:
    if line.failed:
        return [f"none: {line.failed}", *[""] * (len(_TITLES) + len(_COST_TITLES) - 1)]
    figures = ("-" if line.figures[name] is None else str(line.figures[name]) for name in FIGURES)
    costs = ("-" if line.costs[name] is None else f"{line.costs[name]:.1f}" for name in COSTS)
    return [*figures, *costs]


def _flat(line: _Line) -> dict[str, Any]:
    flat: dict[str, Any] = {"class": line.category, "detector": line.method}
    for figure, interval in line.figures.items():
        ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
        flat |= dict(zip((figure, f"{figure}_low", f"{figure}_high"), ends, strict=True))
    return {**flat, **line.costs, "failed": line.failed}


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A figure's value, and its value in each draw."""

    value: float
    draws: _Floats

    def minus(self, other: "_Drawn") -> Interval:
        return bootstrap.interval(self.value - other.value, self.draws - other.draws)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A method on a class, or on the mean of the classes; what is undefined is left out."""

    figures: dict[str, _Drawn] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    failed: str = ""

    def line(self, category: str, method: str) -> _Line:
        drawn = {name: self.figures.get(name) for name in FIGURES}
        intervals = {name: bootstrap.interval(one.value, one.draws) if one else None for name, one in drawn.items()}
        return _Line(category, method, intervals, {name: self.costs.get(name) for name in COSTS}, self.failed)


_Table = dict[tuple[str, str], _Measured]  # (class, method) → what was measured


def run(
    subjects: Sequence[Subject],
    params: config.Params,
    seeds: Sequence[int],
    work: Path,
    draws: int = bootstrap.DRAWS,
    methods: Sequence[str] = METHODS,
    minutes: float = 30,
    tell: Tell = print,
) -> AccuracyResult:
    """Measure every method on every class with every seed; results below `work` are kept and found again.

    A rival that fails or takes more than `minutes` on a class has a line that says so. Environments of rivals are kept
    beside `work`.
    """
    table: _Table = {}
    notes: dict[str, None] = {}
    tasks = [(subject, method) for subject in subjects for method in methods]
    context: BenchmarkContext | None = None
    for subject, method in track(tasks, "bench accuracy", total=len(tasks)):
        if context is None or context.subject is not subject:
            context = BenchmarkContext(subject, params, work)  # views of a class are up to gigabytes: one at a time
            weights = bootstrap.weights(list(context.test["group_id"]), context.defect, draws, name=subject.name)
        try:
            entries = [_told(context, method, seed, minutes, tell) for seed in seeds]
        except RivalError as error:
            table[subject.name, method] = _Measured(failed=str(error))
            tell(f"{subject.name} {method}: {error}")
            continue
        table[subject.name, method] = _measured(context, entries, weights)
        if method in RIVALS:
            versions = ", ".join(f"{name} {version}" for name, version in entries[0].facts["versions"].items())
            notes[f"{RIVALS[method].title}: {versions}; blocks {RIVALS[method].layers}"] = None
    names = [subject.name for subject in subjects]
    for method in methods:
        table[MEAN, method] = _mean({name: table[name, method] for name in names})
    rows = names if len(names) == 1 else [*names, MEAN]
    lines = [table[name, method].line(name, method) for name in rows for method in methods]
    gaps = [gap for name in rows for figure in _COMPARED for gap in _gaps(table, name, figure, methods)]
    return AccuracyResult(lines, gaps, tuple(seeds), draws, list(notes))


def known_methods(asked: Sequence[str], rivals: Sequence[str] = ()) -> tuple[str, ...]:
    """Return `asked`, or all of METHODS where none is, and `rivals`; `all` stands for every rival.

    Raises `ConfigError` for an unknown one.
    """
    for option, given, known in (("--methods", asked, METHODS), ("--rival", rivals, ("all", *RIVALS))):
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"{option}: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    return (*(asked or METHODS), *(RIVALS if "all" in rivals else dict.fromkeys(rivals)))


def _told(context: BenchmarkContext, method: str, seed: int, minutes: float, tell: Tell) -> BenchmarkResult:
    found = entry(context, method, seed, minutes, tell)
    shown = ", ".join(f"{key} {found.facts[key]:.4g}" for key in (*FIGURES, *COSTS) if found.facts[key] is not None)
    tell(f"{context.subject.name} {method} seed {seed}: {shown}")
    return found


def _measured(context: BenchmarkContext, entries: list[BenchmarkResult], weights: _Floats) -> _Measured:
    """Average over seeds; every seed sees the same draws."""
    draws = [{"image_auroc": bootstrap.image_aurocs(context.defect, one.scores, weights)} for one in entries]
    for own, one in zip(draws, entries, strict=True):
        own |= bootstrap.pixel_figures(one.counts, weights) if one.counts else {}
    values = {figure: [one.facts[figure] for one in entries] for figure in FIGURES}
    defined = [figure for figure in FIGURES if None not in values[figure]]
    figures = {f: _Drawn(float(np.mean(values[f])), np.mean([own[f] for own in draws], axis=0)) for f in defined}
    return _Measured(figures, {cost: float(np.mean([one.facts[cost] for one in entries])) for cost in COSTS})


def _mean(classes: dict[str, _Measured]) -> _Measured:
    """Average each figure plainly over the classes that have it; there is none where the method failed on a class."""
    if failed := [name for name, found in classes.items() if found.failed]:
        return _Measured(failed=f"failed on {', '.join(failed)}")
    figures = {}
    for figure in FIGURES:
        if parts := [found.figures[figure] for found in classes.values() if figure in found.figures]:
            value = float(np.mean([part.value for part in parts]))
            figures[figure] = _Drawn(value, np.mean([part.draws for part in parts], axis=0))
    return _Measured(figures, {cost: float(np.mean([f.costs[cost] for f in classes.values()])) for cost in COSTS})


def _gaps(table: _Table, name: str, figure: str, methods: Sequence[str]) -> list[_Gap]:
    """Compare ours with every other detector of a row."""
    figures = {method: table[name, method].figures for method in methods}
    found = {method: own[figure] for method, own in figures.items() if figure in own}
    ours = found.pop(OURS, None)
    if ours is None:
        return []
    # Untrained codes are our own memory: whether training is worth its seconds is a question of its own.
    best = max((method for method in found if method != UNTRAINED), key=lambda m: found[m].value, default="")
    return [_Gap(name, figure, method, method == best, ours.minus(other)) for method, other in found.items()]
