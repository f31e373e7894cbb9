"""Progress with an estimate of the time left: a live bar on a terminal or in a notebook, else a line now and then.

Nothing that takes long is silent: what has no steps to count says every ten seconds that it is still at work.
"""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
_QUIET_SECONDS = 10.0  # between lines where there is no terminal
_BAR_SECONDS = 0.2  # between changes of a notebook's bar


def tell(line: str) -> None:
    """Print a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def working(
    what: str | Callable[[], str], say: Callable[[str], object] = tell, ends: bool = True
) -> Iterator[Callable[[], None]]:
    """Say what is being done, and for how long, whenever the block has said nothing for ten seconds.

    Yield what the block calls where it says something itself. A shorter block is silent; else its end is told, too,
    with the time it took, unless `ends` is False.
    """
    words: Callable[[], str] = what if callable(what) else lambda: str(what)
    begun, stirred, over, spoken = time.monotonic(), threading.Event(), threading.Event(), threading.Event()

    def look() -> None:
        while not over.is_set():
            if stirred.wait(_QUIET_SECONDS):
                stirred.clear()
            else:
                spoken.set()
                say(f"{words()}: {time.monotonic() - begun:.0f} s so far")

    thread = threading.Thread(target=look, name="working", daemon=True)
    thread.start()
    try:
        yield stirred.set
    finally:
        over.set()
        stirred.set()
        thread.join()
    if ends and spoken.is_set():
        say(f"{words()}: done in {time.monotonic() - begun:.0f} s")


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
    yield from (_in_notebook if console.is_jupyter else _lines)(items, what, total, start)


def _in_notebook(items: Iterable[T], what: str, total: int, start: int) -> Iterator[T]:
    ipython: Any = importlib.import_module("IPython.display")  # a notebook has it, the package does not need it
    done, begun, drawn = start, time.monotonic(), 0.0

    def bar() -> Any:
        ahead = f", {_ahead(time.monotonic() - begun, done - start, total - done)}" if start < done < total else ""
        return ipython.HTML(f'{escape(what)} <progress max="{total}" value="{done}"></progress> {done}/{total}{ahead}')

    shown = ipython.display(bar(), display_id=True)
    for item in items:
        yield item
        done += 1
        if time.monotonic() - drawn >= _BAR_SECONDS or done == total:
            drawn = time.monotonic()
            shown.update(bar())


def _lines(items: Iterable[T], what: str, total: int, start: int) -> Iterator[T]:
    done = 0
    with working(lambda: f"{what}: {start + done}/{total}", ends=False) as heard:
        begun = spoken = time.monotonic()
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - spoken >= _QUIET_SECONDS or start + done == total:
                tell(f"{what}: {start + done}/{total}, {_ahead(now - begun, done, total - start - done)}")
                spoken = now
                heard()


def _ahead(seconds: float, done: int, left: int) -> str:
    """Say how long the steps that are `left` take at the pace of those `done` in so many `seconds`."""
    return f"about {seconds / done * left:.0f} s left"
