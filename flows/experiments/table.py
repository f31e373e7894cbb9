"""From single runs to a table of mean ± spread. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

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
