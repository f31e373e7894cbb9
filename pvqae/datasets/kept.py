"""Facts about images kept by their sha256, so that a manifest that is built again only hashes what it has seen before.

One SQLite file for each state of the code that decodes and measures: what other code has found is never used.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parent
DECODING = ("decoding.py", "images.py", "inspection.py")
TABLE = "CREATE TABLE IF NOT EXISTS facts (sha256 TEXT PRIMARY KEY, facts TEXT, sum TEXT) WITHOUT ROWID"
PART = 500  # hashes of one question; SQLite takes 999 at least


def file(folder: Path) -> Path:
    """The file of this code below `folder`."""
    code = hashlib.sha256(b"".join((PACKAGE / name).read_bytes() for name in DECODING)).hexdigest()
    return folder / f"facts-{code[:16]}.sqlite"


class Kept:
    """Texts by sha256. A file that is damaged, locked for long or full costs speed only."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def find(self, hashes: Sequence[str]) -> dict[str, object]:
        """The facts of those `hashes` that are known."""
        found: dict[str, object] = {}
        with contextlib.suppress(sqlite3.Error, ValueError):
            for start in range(0, len(hashes), PART):
                some = hashes[start : start + PART]
                marks = ",".join("?" * len(some))
                rows = self._base.execute(f"SELECT sha256, facts, sum FROM facts WHERE sha256 IN ({marks})", some)
                found |= {sha256: json.loads(text) for sha256, text, sum_ in rows if sum_ == _sum(sha256, text)}
        return found

    def put(self, facts: Mapping[str, object]) -> None:
        """Keep facts; they are on the disk when this returns."""
        texts = {sha256: json.dumps(values) for sha256, values in facts.items()}
        rows = [(sha256, text, _sum(sha256, text)) for sha256, text in texts.items()]
        with contextlib.suppress(sqlite3.Error), self._base:
            self._base.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)


def _sum(sha256: str, text: str) -> str:
    """SQLite notices no flipped byte."""
    return hashlib.sha256(f"{sha256} {text}".encode()).hexdigest()[:16]


@contextmanager
def opened(path: Path | None) -> Iterator[Kept]:
    """The facts in `path`; None keeps them for this run alone."""
    base = sqlite3.connect(":memory:")
    if path is not None:
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(path, timeout=30)
    try:
        with contextlib.suppress(sqlite3.Error):
            base.execute(TABLE)
        yield Kept(base)
    finally:
        base.close()
