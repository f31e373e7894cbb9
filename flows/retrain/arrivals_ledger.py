"""What was decided about every object of a landing area: an append-only file, the memory of the intake.

Its cursor is a set, not a time: an object is new if the ledger has no line about it, whatever any clock says.

Where the intake of a dataset keeps its files, and the lists beside them for people.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from flows.adapters.landing import Object
from flows.core import lines
from pvqae.core import files
from pvqae.core.files import write_text

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


@dataclass(frozen=True)
class Places:
    """Where the intake of one dataset keeps things, below `root`/.pvqae."""

    root: Path
    dataset: str

    @property
    def home(self) -> Path:
        return self.root / ".pvqae" / "arrivals" / self.dataset

    @property
    def review(self) -> Path:
        """Held images by class; a person accepts one by moving it to accepted/CLASS."""
        return self.root / ".pvqae" / "review" / self.dataset

    @property
    def ledger(self) -> Path:
        return self.home / "ledger.jsonl"

    def file(self, entry: Entry) -> Path | None:
        """Where an object's file lies; None where none is kept."""
        if entry.state == "accepted":
            return self.home / "staged" / entry.category / entry.part / entry.name
        if entry.state in ("review", "quarantined") and entry.name:
            home = self.review if entry.state == "review" else self.home / "quarantine"
            return home / entry.category / entry.name
        return None


def put(source: Path, target: Path) -> None:
    """Move a file into place, its content on the disk first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


def release(places: Places, ledger: Ledger) -> None:
    """Accept the held images that a person has moved to accepted/CLASS of the review folder."""
    for entry in ledger.entries("review", "accepted"):
        file = places.review / "accepted" / entry.category / entry.name
        if not file.is_file():
            continue
        if entry.state == "review":
            accepted = replace(entry, state="accepted", reason="accepted by a person in review")
            target = places.file(accepted)
            assert target is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            ledger.append([accepted])
        file.unlink()


def write_lists(places: Places, ledger: Ledger) -> None:
    """quarantine.csv and review.csv beside the files: one line per object, for people."""
    for state, folder in (("quarantined", places.home / "quarantine"), ("review", places.review)):
        entries = [entry for entry in ledger.entries() if entry.state == state]
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(("class", "object", "bytes", "reason", "score", "file"))
        for entry in entries:
            file = places.file(entry)
            kept = file.relative_to(folder).as_posix() if file and file.exists() else ""
            rows.writerow((entry.category, files.shown(entry.key), entry.size, entry.reason, entry.score or "", kept))
        if entries or folder.is_dir():
            write_text(folder / f"{folder.name if state == 'quarantined' else 'review'}.csv", out.getvalue())
