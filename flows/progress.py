"""From the rows that a stage writes, {"phase", "fold", "step", "loss", ...}, to curves; live while it runs."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.metrics import Metric

PERIOD = 1.0  # seconds between looks at a growing file
PLACE = ("phase", "fold", "step")  # which row it is, not what it says

FULL = "full"  # the fold that leaves nothing out: the one that ships

Row = dict[str, Any]


def curves(rows: Iterable[Row]) -> list[Metric]:
    """Each number of each row under `<phase>/<name>`, a fold's under `<phase>/<fold>/<name>`; nulls are left out."""
    found = []
    for row in rows:
        where = [str(row.get("phase", "train"))]
        if row.get("fold") not in (None, FULL):
            where.append(str(row["fold"]))
        for key, value in row.items():
            if key not in PLACE and isinstance(value, int | float) and not isinstance(value, bool):
                found.append(Metric("/".join([*where, key]), float(value), int(row.get("step", 0))))
    return found


def read(path: Path) -> list[Row]:
    """All whole rows of a JSON lines file; a last line that is still being written is left for the next look."""
    if not path.exists():
        return []
    whole = path.read_text("utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


class Tail:
    """Hands each row on once, whatever file it comes from: the live one, or the finished history."""

    def __init__(self, sink: Callable[[list[Metric]], None]) -> None:
        self._sink = sink
        self._seen: set[tuple[Any, ...]] = set()

    def take(self, path: Path) -> None:
        new = []
        for row in read(path):
            place = tuple(row.get(key) for key in PLACE)
            if place not in self._seen:
                self._seen.add(place)
                new.append(row)
        if new:
            self._sink(curves(new))

    @contextmanager
    def following(self, folder: Path, pattern: str) -> Iterator[None]:
        """Meanwhile, take rows from the newest file of `pattern` below `folder`. A file that nobody writes any more,
        of other params, is not taken: only one that changed after the start."""
        before = {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(PERIOD):
                for path in folder.glob(pattern):
                    try:
                        if path.stat().st_mtime_ns != before.get(path):
                            self.take(path)
                    except OSError:  # finished: the stage has moved it
                        continue

        thread = threading.Thread(target=look, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
