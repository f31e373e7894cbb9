"""From single runs to a table of mean ± spread. Pure.

What the numbers decide by a rule that was fixed beforehand, in words. Pure.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from flows.experiments.mechanism import REAL_USE
from flows.experiments.runs import Done

MEAN = "mean"


@dataclass(frozen=True)
class Cell:
    """One figure over seeds: standard deviation 0 where there is one seed."""

    mean: float
    spread: float
    count: int

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 10 else 1
        spread = f" ± {self.spread:.{digits}f}" if self.count > 1 else ""
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Row:
    """One variant on one class, or on the mean of all classes."""

    label: str
    category: str
    cells: dict[str, Cell]


def rows(done: Iterable[Done]) -> list[Row]:
    """Rows in the order of the runs; with several classes, the mean over classes closes each variant."""
    values: dict[str, dict[str, dict[int, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for run in done:
        for name, figures in run.figures.items():
            label = name or run.planned.variant
            known = {key: value for key, value in figures.items() if value is not None}
            values[label][run.planned.category][run.planned.params.seed] = known
    return [row for label, classes in values.items() for row in _of_label(label, classes)]


def _of_label(label: str, classes: dict[str, dict[int, dict[str, float]]]) -> list[Row]:
    out = [Row(label, category, _cells(list(seeds.values()))) for category, seeds in classes.items()]
    if len(classes) < 2:
        return out
    common = set.intersection(*(set(seeds) for seeds in classes.values()))
    return [*out, Row(label, MEAN, _cells([_mean([seeds[s] for seeds in classes.values()]) for s in sorted(common)]))]


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    """Of the figures that every class has."""
    keys = set.intersection(*(set(one) for one in figures))
    return {key: mean(one[key] for one in figures) for key in keys}


def _cells(seeds: list[dict[str, float]]) -> dict[str, Cell]:
    keys = {key for one in seeds for key in one}
    values = {key: [one[key] for one in seeds if key in one] for key in keys}
    return {key: Cell(mean(v), stdev(v) if len(v) > 1 else 0.0, len(v)) for key, v in values.items()}


PAPER = 0.973  # image AUROC on MVTec AD
POINTS = 0.02
MVTEC = ("bottle", "toothbrush")
CONSTANTS = ("budget coarse", "budget medium", "budget fine", "budget actual")


def baseline(table: list[Row]) -> list[str]:
    """The gap to the paper."""
    own = [row.cells["image_auroc"].mean for row in table if row.category in MVTEC]
    if not own:
        return []
    mean = sum(own) / len(own)
    word = "within" if mean >= PAPER - POINTS else "NOT within"
    return [
        f"Mean image AUROC of {len(own)} MVTec class(es): {mean:.3f}; {mean - PAPER:+.3f} to the paper's {PAPER}, "
        f"{word} 2 points of it."
    ]


def mechanism(table: list[Row]) -> list[str]:
    """The three tests, class by class."""
    categories = dict.fromkeys(row.category for row in table if row.category != MEAN)
    return [line for category in categories for line in _of_class(category, table)]


def _of_class(category: str, table: list[Row]) -> list[str]:
    rows = {row.label: row.cells for row in table if row.category == category}
    tests = next(cells for cells in rows.values() if "shuffled_raise" in cells)
    order, least, raised = (tests.get(key) for key in ("spearman", "least_share", "shuffled_raise"))
    follows = order is not None and order.mean >= 0.3 and least is not None and least.mean >= REAL_USE
    costs = raised is not None and raised.mean >= 0.05
    helps = all(
        _above(rows["budget expected"][key], rows[name][key])
        for key in ("image_auroc", "pixel_auroc")
        for name in CONSTANTS
        if key in rows["budget expected"]
    )
    return [
        f"{category}: (1) levels follow savings, all in use: {_word(follows)}; (2) shuffling costs 5 %: {_word(costs)};"
        f" (3) the expected budget beats every constant and the actual one beyond spread: {_word(helps)}."
    ]


def _above(one: Cell, other: Cell) -> bool:
    return one.mean - other.mean > max(one.spread, other.spread)


def _word(held: bool) -> str:
    return "yes" if held else "**no**"


VERDICTS: dict[str, Callable[[list[Row]], list[str]]] = {
    "baseline": baseline,
    "mechanism": mechanism,
    "mechanism_longer": mechanism,
}
