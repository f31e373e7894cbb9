"""From single runs to docs/experiments/<name>.md: question, command, table, plot, verdict and answer.

The answer is a person's: it is in answers/<name>.md, which is read here and never written.
"""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill

from flows.experiments.catalogue import FIGURES, Experiment, FinishedRun
from flows.experiments.mechanism import REAL_USE
from pvqae.core import runtime
from pvqae.core.files import write_text

MEAN = "mean"
_PAPER, _POINTS = 0.973, 0.02  # image AUROC on MVTec AD
_MVTEC = ("bottle", "toothbrush")
_CONSTANTS = ("budget coarse", "budget medium", "budget fine", "budget actual")


@dataclass(frozen=True)
class _Cell:
    """One figure over seeds: standard deviation 0 where there is one seed."""

    mean: float
    spread: float
    count: int

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 10 else 1
        spread = f" ± {self.spread:.{digits}f}" if self.count > 1 else ""
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class _TableRow:
    """One variant on one class, or on the mean of all classes."""

    label: str
    category: str
    cells: dict[str, _Cell]


def rows(done: Iterable[FinishedRun]) -> list[_TableRow]:
    """Return rows in the order of the runs; with several classes, the mean over classes closes each variant."""
    values: dict[str, dict[str, dict[int, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for run in done:
        for name, figures in run.figures.items():
            known = {key: value for key, value in figures.items() if value is not None}
            values[name or run.planned.variant][run.planned.category][run.planned.params.seed] = known
    return [row for label, classes in values.items() for row in _of_label(label, classes)]


def _of_label(label: str, classes: dict[str, dict[int, dict[str, float]]]) -> list[_TableRow]:
    out = [_TableRow(label, category, _cells(list(seeds.values()))) for category, seeds in classes.items()]
    if len(classes) < 2:
        return out
    common = set.intersection(*(set(seeds) for seeds in classes.values()))
    means = [_mean([seeds[seed] for seeds in classes.values()]) for seed in sorted(common)]
    return [*out, _TableRow(label, MEAN, _cells(means))]


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    """Average the figures that every class has."""
    keys = set.intersection(*(set(one) for one in figures))
    return {key: mean(one[key] for one in figures) for key in keys}


def _cells(seeds: list[dict[str, float]]) -> dict[str, _Cell]:
    keys = {key for one in seeds for key in one}
    values = {key: [one[key] for one in seeds if key in one] for key in keys}
    return {key: _Cell(mean(v), stdev(v) if len(v) > 1 else 0.0, len(v)) for key, v in values.items()}


def _baseline(table: list[_TableRow]) -> list[str]:
    """State the gap to the paper."""
    own = [row.cells["image_auroc"].mean for row in table if row.category in _MVTEC]
    if not own:
        return []
    reached = sum(own) / len(own)
    word = "within" if reached >= _PAPER - _POINTS else "NOT within"
    return [
        f"Mean image AUROC of {len(own)} MVTec class(es): {reached:.3f}; {reached - _PAPER:+.3f} to the paper's "
        f"{_PAPER}, {word} 2 points of it."
    ]


def _mechanism(table: list[_TableRow]) -> list[str]:
    """State the outcome of the three tests, class by class."""
    categories = dict.fromkeys(row.category for row in table if row.category != MEAN)
    return [_of_class({row.label: row.cells for row in table if row.category == one}, one) for one in categories]


def _of_class(cells_of: dict[str, dict[str, _Cell]], category: str) -> str:
    tests = next(cells for cells in cells_of.values() if "shuffled_raise" in cells)
    order, least, raised = (tests.get(key) for key in ("spearman", "least_share", "shuffled_raise"))
    follows = order is not None and order.mean >= 0.3 and least is not None and least.mean >= REAL_USE
    costs = raised is not None and raised.mean >= 0.05
    own = cells_of["budget expected"]
    known = [key for key in ("image_auroc", "pixel_auroc") if key in own]
    pairs = ((own[key], cells_of[name][key]) for key in known for name in _CONSTANTS)
    helps = all(one.mean - other.mean > max(one.spread, other.spread) for one, other in pairs)
    words = ["yes" if held else "**no**" for held in (follows, costs, helps)]
    return (
        f"{category}: (1) levels follow savings, all in use: {words[0]}; (2) shuffling costs 5 %: {words[1]};"
        f" (3) the expected budget beats every constant and the actual one beyond spread: {words[2]}."
    )


# What the numbers decide by a rule that was fixed beforehand, in words.
_VERDICTS: dict[str, Callable[[list[_TableRow]], list[str]]] = {
    "baseline": _baseline,
    "mechanism": _mechanism,
    "mechanism_longer": _mechanism,
}


def write(name: str, experiment: Experiment, done: Sequence[FinishedRun], folder: Path, pictures: Path) -> Path:
    """Write the page and its plot to `folder`, with a copy of `pictures` where there are any; returns the page."""
    table = rows(done)
    folder.mkdir(parents=True, exist_ok=True)
    _plot(table, experiment.plot, folder / f"{name}.svg")
    seeds = "seed 0" if experiment.seeds == 1 else f"seeds 0 to {experiment.seeds - 1}"
    answer = folder / "answers" / f"{name}.md"
    lines = [
        f"# {name}",
        "",
        f"**Question.** {experiment.question}",
        "",
        f"    python -m flows experiment {name}",
        "",
        f"{len(done)} runs, {seeds}; classes {', '.join(experiment.classes)}; "
        f"{sum(run.seconds for run in done) / 60:.0f} minutes of processor time on {processor()}, {runtime.cores()} "
        f"cores. Mean ± standard deviation over seeds. {experiment.note}",
        "",
        *_table(table, experiment.figures),
        "",
        f"![{FIGURES[experiment.plot]}]({name}.svg)",
        "",
        *_pictures(name, pictures, folder / name),
        *[f"* {line}" for line in (_VERDICTS[name](table) if name in _VERDICTS else ())],
        "",
        "## Answer",
        "",
        answer.read_text("utf-8").strip()
        if answer.exists()
        else f"Not written yet: read the numbers and write two sentences into answers/{answer.name}.",
    ]
    page = folder / f"{name}.md"
    write_text(page, "\n".join(lines) + "\n")
    return page


def _table(table: Sequence[_TableRow], figures: Sequence[str]) -> list[str]:
    """Return the lines of the table; a column that no row has is left out."""
    known = [key for key in figures if any(key in row.cells for row in table)]
    lines = []
    for row in table:
        bold = "**" if row.category == MEAN else ""
        cells = (f"{bold}{row.cells[key]}{bold}" if key in row.cells else "" for key in known)
        lines.append([row.label, row.category, *cells])
    return markdown(["variant", "class", *(FIGURES[key] for key in known)], lines, text=2)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], text: int | None = None) -> list[str]:
    """Return the lines of a Markdown table; columns after the first `text` are aligned to the right (None: none)."""
    rule = ["---" if text is None or column < text else "---:" for column in range(len(heads))]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines)]


def _pictures(name: str, source: Path, target: Path) -> list[str]:
    files = sorted(source.glob("*.png")) if source.is_dir() else []
    if not files:
        return []
    target.mkdir(exist_ok=True)
    lines = [
        "Test images of the demo with their masks' outlines; expected and actual resolutions (dark coarse, light fine);"
        " S_prior.",
        "",
    ]
    for file in files:
        (target / file.name).write_bytes(file.read_bytes())
        lines += [f"{file.stem}:", "", f"![{file.stem}]({name}/{file.name})", ""]
    return lines


def processor() -> str:
    """Name the processor of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _plot(table: Sequence[_TableRow], figure: str, file: Path) -> None:
    """Write an SVG of a figure over the variants, a line per class; the same table gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "pvqae"
    known = [row for row in table if figure in row.cells]
    labels = list(dict.fromkeys(row.label for row in known))
    drawn, axes = pyplot.subplots(figsize=(max(5.0, 2.5 + 0.55 * len(labels)), 3.6), layout="constrained")
    for category in dict.fromkeys(row.category for row in known):
        own = [row for row in known if row.category == category]
        axes.errorbar(
            [labels.index(row.label) for row in own],
            [row.cells[figure].mean for row in own],
            [row.cells[figure].spread for row in own],
            marker="o",
            capsize=3,
            linewidth=2.5 if category == MEAN else 1,
            color="black" if category == MEAN else None,
            label=category,
        )
    many = len(labels) > 2
    axes.set_xticks(
        range(len(labels)),
        [fill(label, 24) for label in labels],
        rotation=30 if many else 0,
        ha="right" if many else "center",
    )
    axes.set_ylabel(FIGURES[figure])
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    text = StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(drawn)
    write_text(file, "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n")
