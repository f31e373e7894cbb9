"""What was decided about every object of a landing area: an append-only file, the memory of the intake.

Its cursor is a set, not a time: an object is new if the ledger has no line about it, whatever any clock says.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flows import lines
from flows.adapters.landing import Object
from pvqae.files import write_text

# accepted: kept beside the dataset; versioned: in a DVC version of it; lost: its kept file is gone, so it is as new.
# The others are final unless a person decides.
State = Literal["accepted", "versioned", "review", "duplicate", "quarantined", "lost"]


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
    """The file `path`, with one writer at a time. The last line about an object holds.

    Beside it failed.json counts the tries of what did not arrive, so that it can wait behind what may.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._failed = path, path.with_name("failed.json")
        self._last: dict[str, Entry] = {}
        self._tries = _tries(self._failed)
        for entry in lines.records(path, Entry):
            self._last[entry.id] = entry

    def append(self, entries: Iterable[Entry]) -> None:
        """Durable when this returns: the disk has it."""
        added = list(entries)
        lines.append(self._path, map(asdict, added))
        self._last |= {entry.id: entry for entry in added}

    def __contains__(self, item: Object) -> bool:
        return item.id in self._last and self._last[item.id].state != "lost"

    def tries(self, item: Object) -> int:
        """How often an object did not arrive."""
        return self._tries.get(item.id, 0)

    def tried(self, failed: Iterable[Object]) -> None:
        """Count one more try of what did not arrive; what has a line by now is forgotten."""
        for item in failed:
            self._tries[item.id] = self.tries(item) + 1
        kept = {name: count for name, count in self._tries.items() if name not in self._last}
        if kept or self._failed.exists():
            write_text(self._failed, json.dumps(kept) + "\n")

    def entries(self, *states: State) -> list[Entry]:
        """The present entry of each object, in the order in which the objects came; of `states` only, if any."""
        return [entry for entry in self._last.values() if not states or entry.state in states]


def _tries(file: Path) -> dict[str, int]:
    """Empty where the file is damaged: it only says what is tried first."""
    try:
        found = json.loads(file.read_text("utf-8"))
        return {str(name): int(count) for name, count in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
