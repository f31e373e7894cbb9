"""Progress with an estimate of the time left: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
_QUIET_SECONDS = 10.0  # between lines where there is no terminal


def track(items: Iterable[T], what: str, total: int, start: int = 0) -> Iterator[T]:
    """Yield `items` and show how far they are; `start` were done before, e.g. by a killed run. Writes to stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=total, completed=start)
            for item in items:
                yield item
                bar.advance(task)
        return
    yield from _lines(items, what, total, start)


def _lines(items: Iterable[T], what: str, total: int, start: int) -> Iterator[T]:
    begun = spoken = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - spoken >= _QUIET_SECONDS or start + done == total:
            left = (now - begun) / done * (total - start - done)
            print(f"{what}: {start + done}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            spoken = now
