"""What was decided about every object of a landing area: an append-only file, the memory of the intake.

Its cursor is a set, not a time: an object is new if the ledger has no line about it, whatever any clock says.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flows import lines
from flows.adapters.landing import Object

# accepted: kept beside the dataset; versioned: in a DVC version of it. The others are final unless a person decides.
State = Literal["accepted", "versioned", "review", "duplicate", "quarantined"]


@dataclass(frozen=True)
class Entry:
    """One decision. `part` is good, gate or defect/KIND; `name` the file's name from then on.

    `score` is the champion's, if it scored. `reason` says why; of a versioned entry it is the DVC hash of the version.
    """

    key: str
    etag: str
    size: int
    state: State
    reason: str
    category: str
    sha256: str = ""
    name: str = ""
    part: str = ""
    score: float | None = None

    @property
    def defect(self) -> bool:
        return self.part.startswith("defect/")

    @property
    def id(self) -> str:
        return Object(self.key, self.etag, self.size).id


class Ledger:
    """The file `path`, with one writer at a time. The last line about an object holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, Entry] = {}
        for entry in lines.records(path, Entry):
            self._last[entry.id] = entry

    def append(self, entries: Iterable[Entry]) -> None:
        """Durable when this returns: the disk has it."""
        added = list(entries)
        lines.append(self._path, map(asdict, added))
        self._last |= {entry.id: entry for entry in added}

    def __contains__(self, item: Object) -> bool:
        return item.id in self._last

    def entries(self, *states: State) -> list[Entry]:
        """The present entry of each object, in the order in which the objects came; of `states` only, if any."""
        return [entry for entry in self._last.values() if not states or entry.state in states]
