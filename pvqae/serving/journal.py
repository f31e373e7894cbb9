"""What batch scoring has done so far, in one SQLite file: a killed run goes on from it, and memory does not grow.

Results are kept by the sha256 of the image; the file belongs to one bundle, so the pair names a result.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

Values = dict[str, Any]

TABLES = """
CREATE TABLE IF NOT EXISTS results (sha256 TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS known (identity TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
CREATE TEMP TABLE listing (
    number INTEGER PRIMARY KEY, path TEXT, identity TEXT, modified TEXT, sha256 TEXT DEFAULT '', reason TEXT DEFAULT ''
);
"""


class Journal:
    """Open `file`, or memory alone; a result is on the disk when `put` returns."""

    def __init__(self, file: Path | None = None) -> None:
        self._base = sqlite3.connect(file or ":memory:", isolation_level=None)
        self._base.executescript(TABLES)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()

    def find(self, sha256: str) -> Values | None:
        """The result for an image's bytes."""
        row = self._base.execute("SELECT record FROM results WHERE sha256 = ?", (sha256,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, sha256: str, record: Values) -> None:
        text = json.dumps(record, allow_nan=False)
        self._base.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (sha256, text))

    def sha256_of(self, identity: str) -> str:
        """The hash of what a store calls `identity`, "" when it was never fetched."""
        row = self._base.execute("SELECT sha256 FROM known WHERE identity = ?", (identity,)).fetchone()
        return str(row[0]) if row else ""

    def know(self, identity: str, sha256: str) -> None:
        if identity:
            self._base.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (identity, sha256))

    def enlist(self, path: str, identity: str, modified: str) -> None:
        """One image of this run, in the order of the output."""
        columns = "INSERT INTO listing (path, identity, modified) VALUES (?, ?, ?)"
        self._base.execute(columns, (path, identity, modified))

    def __len__(self) -> int:
        return int(self._base.execute("SELECT count(*) FROM listing").fetchone()[0])

    def listed(self) -> Iterator[tuple[int, str, str, str, str, str]]:
        """number, path, identity, modified, sha256, reason; may be settled meanwhile."""
        number = 0
        while row := self._base.execute(
            "SELECT * FROM listing WHERE number > ? ORDER BY number LIMIT 1", (number,)
        ).fetchone():
            number = row[0]
            yield row

    def settle(self, number: int, sha256: str, reason: str) -> None:
        """What came of a listed image: its hash, or why it has none."""
        self._base.execute("UPDATE listing SET sha256 = ?, reason = ? WHERE number = ?", (sha256, reason, number))
