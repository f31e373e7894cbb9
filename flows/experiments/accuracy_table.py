"""The result of the accuracy bench as rich tables, markdown, JSON and CSV."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from flows.experiments.accuracy import COSTS, Gap, Line, Result
from flows.experiments.bootstrap import Interval
from flows.experiments.contest import FIGURES, OURS
from pvqae.core.files import write_text
from pvqae.samples.manifest import write_csv

HEADS = ("class", "detector", "image AUROC", "pixel AUROC", "AUPRO", "train s", "MB", "ms/image")
GAP_HEADS = ("class", "figure", "pvqae minus", "difference", "")
NAMES = {
    OURS: "pvqae",
    "patchcore_1": "PatchCore 1 %",
    "patchcore_10": "PatchCore 10 %",
    "patchcore_1_raw": "PatchCore 1 %, unscaled channels",
    "control": "no model",
    "covering": "covering codes, untrained",
}
TITLES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
EXPLAINED = """\
Value (95 % interval): mean over seeds; bootstrap over groups (physical parts), groups with and without a defect drawn
apart, the same draws for all detectors and seeds. Differences are paired; "best yardstick" is the one with the highest
value on these same images, which favours it. The untrained covering codes are our own memory, hence no yardstick.
Seconds: training and fitting, without reading images and the frozen backbone. MB: millions of bytes a class needs
beyond the frozen backbone, half precision. ms: from a file to its score, median. All in one process, one after another.
PatchCore: the two finest levels pooled over 3x3, greedy coreset chosen in 64 random dimensions, nearest distance,
9-neighbour re-weighting, maximum; channels scaled to unit spread unless said. Its coreset is exact up to 3e9 distances,
beyond that it is chosen in random parts. No model: residual to the training mean of the place, whitened.
"""


def rows(result: Result) -> Iterator[tuple[str, ...]]:
    """The cells of the main table."""
    for line in result.lines:
        figures = (_shown(line.figures[figure]) for figure in FIGURES)
        yield (line.category, NAMES.get(line.method, line.method), *figures, *(f"{line.costs[c]:.1f}" for c in COSTS))


def gap_rows(result: Result) -> Iterator[tuple[str, ...]]:
    """The cells of the table of paired differences: the best yardstick of each row, and the untrained codes."""
    for gap in result.gaps:
        if gap.best or gap.other == "covering":
            signed = f"{gap.difference.value:+.4f} ({gap.difference.low:+.4f} to {gap.difference.high:+.4f})"
            what = "best yardstick" if gap.best else "without training"
            yield (gap.category, TITLES[gap.figure], NAMES.get(gap.other, gap.other), signed, what)


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else str(interval)


def show(result: Result, console: Console | None = None) -> None:
    """Print both tables."""
    console = console or Console()
    for title, heads, cells in _tables(result):
        table = Table(*heads, title=title)
        for row in cells:
            table.add_row(*row)
        console.print(table)
    for note in result.notes:
        console.print(note, markup=False)


def _tables(result: Result) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    seeds = ", ".join(map(str, result.seeds))
    title = f"Accuracy, seeds {seeds}, {result.draws} bootstrap draws"
    return [(title, HEADS, list(rows(result))), ("Paired differences", GAP_HEADS, list(gap_rows(result)))]


def write(result: Result, out: Path) -> None:
    """accuracy.md, accuracy.json and accuracy.csv below `out`."""
    parts = []
    for title, heads, cells in _tables(result):
        lines = [heads, ["---"] * len(heads), *cells]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    notes = "".join(f"* {note}\n" for note in result.notes)
    write_text(out / "accuracy.md", "\n".join([*parts, EXPLAINED, notes]))
    values = {"seeds": result.seeds, "draws": result.draws, "lines": _records(result.lines), "notes": result.notes}
    values["gaps"] = _records(result.gaps)
    write_text(out / "accuracy.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    write_csv(pd.DataFrame(_flat(line) for line in result.lines), out / "accuracy.csv")


def _records(items: Sequence[Line] | Sequence[Gap]) -> list[dict[str, Any]]:
    return [asdict(item) for item in items]


def _flat(line: Line) -> dict[str, Any]:
    flat: dict[str, Any] = {"class": line.category, "detector": line.method}
    for figure, interval in line.figures.items():
        ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
        flat |= dict(zip((figure, f"{figure}_low", f"{figure}_high"), ends, strict=True))
    return flat | line.costs
