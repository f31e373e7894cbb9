"""What a bench measures: one ratio, both sides measured in one process, one after the other, in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of `docs/performance.md`. `ratio` is None where a figure is compared with no other."""

    what: str
    ours: str  # with its unit
    against: str  # what it is compared with, and that figure with its unit
    ratio: float | None
    floor: str  # as the reader sees it: "≥ 50×"
    reached: bool | None  # None: no floor
    note: str = ""


@dataclass(frozen=True)
class Size:
    """How much a bench does. `quick` only shows that it runs; its figures mean nothing."""

    quick: bool = False

    def of(self, quick: int, full: int) -> int:
        return quick if self.quick else full


def side_by_side(one: Callable[[], Any], other: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of both, called in turns after one warm-up each, so that a busy machine slows both alike."""
    one(), other()
    pairs = [(seconds(one), seconds(other)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def at_least(value: float, floor: float) -> tuple[str, bool]:
    """A floor's text and whether it is reached."""
    return f"≥ {floor:g}×", value >= floor


def at_most(value: float, ceiling: float, unit: str = "") -> tuple[str, bool]:
    """The same for what should be small."""
    return f"≤ {ceiling:g}{unit}", value <= ceiling
