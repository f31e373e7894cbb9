"""One plot of an experiment's numbers: a figure over the variants, a line per class, bars for the spread."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from flows.experiments.tables import MEAN, Row
from pvqae.core.files import write_text


def plot(table: Sequence[Row], figure: str, words: str, file: Path) -> None:
    """Write an SVG; the same table gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from io import StringIO

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
    words_of = [fill(label, 24) for label in labels]
    many = len(labels) > 2
    axes.set_xticks(range(len(labels)), words_of, rotation=30 if many else 0, ha="right" if many else "center")
    axes.set_ylabel(words)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    text = StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(drawn)
    write_text(file, "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n")
