"""What the numbers decide by a rule that was fixed beforehand, in words. Pure."""

from collections.abc import Callable

from flows.experiments.table import MEAN, Cell, Row
from pvqae.evaluation.mechanism import REAL_USE

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
