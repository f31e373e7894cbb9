"""What was decided about every object of a landing area, and what people said about images: two append-only files.

The intake's cursor is a set, not a time: an object is new if the ledger has no line about it, whatever any clock says.
Of labels the newest line about an image counts, and undo is a line too. Here is also where the intake keeps its files.
"""

import datetime
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flows.adapters.landing import Object
from flows.core import shared_files
from pvqae.core import files
from pvqae.core.files import write_table, write_text
from pvqae.core.layout import ARRIVED

# accepted: kept next to the dataset; versioned: in a DVC version of it; lost: its kept file is gone, so it is as new.
# withdrawn: in quarantine, as a person said, and out of the dataset with the next version. The others are final unless
# a person decides.
State = Literal["accepted", "versioned", "review", "duplicate", "quarantined", "withdrawn", "lost"]
_WORDS: dict[State, str] = {"review": "held back"}  # as the review page calls them; the others are words themselves
Word = Literal["good", "defect", "neither", "skip", "undo", "applied"]  # neither: a wrong photograph
# gate: a normal of the gate that arrived; source: one that the dataset came with; labelled: in the dataset by a label.
Origin = Literal["held", "scored", "test", "gate", "source", "labelled"]
KIND = "defect/reviewed"  # the part of a labelled defect; a person may sort them into other kinds later
SAID = ("good", "defect", "neither", "skip")


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
        """Whether a person has labelled the image as a defect."""
        return self.part.startswith("defect/")

    @property
    def id(self) -> str:
        """The object's identity in the landing area."""
        return Object(self.key, self.etag, self.size).id


@dataclass(frozen=True)
class Taken:
    """What one run took: entries by state, what did not arrive, what had to wait and why (reason → objects).

    Of a dry run: how many images of each class would be `looked` at, and how many `others` are no images. `unseen`:
    why parts of the landing area could not be listed; `tables` says where the reasons are, by state; `notes` are
    further lines.
    """

    entries: tuple[Entry, ...] = ()
    failed: tuple[str, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    looked: Mapping[str, int] = field(default_factory=dict)
    others: int = 0
    unseen: tuple[str, ...] = ()
    tables: Mapping[State, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def count(self, *states: State) -> int:
        """Return the number of entries in one of `states`."""
        return sum(entry.state in states for entry in self.entries)

    @property
    def lines(self) -> tuple[str, ...]:
        """What came and what did not, for people."""
        looked, waiting = sum(self.looked.values()), sum(self.waiting.values())
        states = Counter(entry.state for entry in self.entries)
        counts = {_WORDS.get(state, state): n for state, n in sorted(states.items())}
        counts |= {"would be looked at": looked, "would be quarantined": self.others}
        counts |= {"wait": waiting, "did not arrive": len(self.failed)}
        came = ", ".join(f"{n} {words}" for words, n in counts.items() if n)
        lines = [f"{sum(counts.values())} new objects: {came}" if came else "no new objects"]
        if looked:
            by_class = ", ".join(f"{n} {category}" for category, n in sorted(self.looked.items()))
            lines.append(f"a dry run: {looked} images would be looked at: {by_class}")
        if self.others:
            lines.append(f"a dry run: {self.others} files that are no images would be quarantined")
        lines += [
            f"{_WORDS.get(state, state)}: reasons in {self.tables[state]}" for state in self.tables if states[state]
        ]
        lines += [f"{n} wait: {reason}" for reason, n in sorted(self.waiting.items())]
        return (
            *lines,
            *(f"not listed: {why}" for why in self.unseen),
            *(f"did not arrive: {why}" for why in self.failed),
            *self.notes,
        )


class Ledger:
    """The file `path`, with one writer at a time. The last line about an object holds.

    failed.json in the same folder counts the tries of what did not arrive, so that it waits behind what may.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._failed = path, path.with_name("failed.json")
        self._last: dict[str, Entry] = {}
        self._tries = _tries(self._failed)
        for entry in shared_files.records(path, Entry):
            self._last[entry.id] = entry

    def append(self, entries: Iterable[Entry]) -> None:
        """Append a line for each entry; the disk has them when this returns."""
        added = list(entries)
        shared_files.append(self._path, map(asdict, added))
        self._last |= {entry.id: entry for entry in added}

    def __contains__(self, item: Object) -> bool:
        return item.id in self._last and self._last[item.id].state != "lost"

    def tries(self, item: Object) -> int:
        """Return how often an object did not arrive."""
        return self._tries.get(item.id, 0)

    def tried(self, failed: Iterable[Object]) -> None:
        """Count one more try of what did not arrive; forget what has a line by now."""
        for item in failed:
            self._tries[item.id] = self.tries(item) + 1
        kept = {name: count for name, count in self._tries.items() if name not in self._last}
        if kept or self._failed.exists():
            write_text(self._failed, json.dumps(kept) + "\n")

    def entries(self, *states: State) -> list[Entry]:
        """Return the present entry of each object, in the order in which they came; of `states` only, if any."""
        return [entry for entry in self._last.values() if not states or entry.state in states]

    def release(self, paths: "IntakePaths") -> None:
        """Accept the held images that a person has moved to accepted/CLASS of the review folder."""
        for entry in self.entries("review", "accepted"):
            file = paths.review / "accepted" / entry.category / entry.name
            if not file.is_file():
                continue
            if entry.state == "review":
                accepted = replace(entry, state="accepted", reason="accepted by a person in review")
                paths.keep(file, accepted)
                self.append([accepted])
            file.unlink()

    def write_lists(self, paths: "IntakePaths") -> dict[State, str]:
        """Write quarantine.csv and review.csv for people, in the folders of these files: one line per object.

        Return where they are, by state, below the project.
        """
        written: dict[State, str] = {}
        for state, file in paths.tables.items():
            rows = [_listed(entry, paths.file(entry), file.parent) for entry in self.entries(state)]
            if rows or file.parent.is_dir():
                write_table(file, ("class", "object", "bytes", "reason", "score", "file"), rows)
                written[state] = file.relative_to(paths.root).as_posix()
        return written


def _tries(file: Path) -> dict[str, int]:
    """Read the counts, none where the file is damaged: it only says what is tried first."""
    try:
        found = json.loads(file.read_text("utf-8"))
        return {str(name): int(count) for name, count in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@dataclass(frozen=True)
class IntakePaths:
    """Where the intake of one dataset keeps its files, below `root`/.pvqae."""

    root: Path
    dataset: str

    @property
    def home(self) -> Path:
        """The intake's own folder."""
        return self.root / ".pvqae" / "arrivals" / self.dataset

    @property
    def incoming(self) -> Path:
        """Files on their way; whatever a crash leaves here is worth nothing."""
        return self.home / "incoming"

    @property
    def review(self) -> Path:
        """Held images by class; a person accepts one by moving it to accepted/CLASS."""
        return self.root / ".pvqae" / "review" / self.dataset

    @property
    def tables(self) -> dict[State, Path]:
        """The tables that say why, for people, by state."""
        return {
            "quarantined": self.home / "quarantine" / "quarantine.csv",
            "review": self.review / "review.csv",
        }

    @property
    def ledger(self) -> Path:
        """The file of the `Ledger`."""
        return self.home / "ledger.jsonl"

    @property
    def gate_scores(self) -> Path:
        """The file of what champions say of the gate's normals."""
        return self.review / "gate.jsonl"

    @property
    def labels(self) -> Path:
        """The file of what people said in review."""
        return self.review / "labels.jsonl"

    def file(self, entry: Entry) -> Path | None:
        """Return where an object's file is kept; None where none is."""
        if entry.state == "accepted":
            return self.home / "staged" / entry.category / entry.part / entry.name
        if entry.state in ("review", "quarantined", "withdrawn") and entry.name:
            home = self.review if entry.state == "review" else self.home / "quarantine"
            return home / entry.category / entry.name
        return None

    def put(self, source: Path, entry: Entry) -> None:
        """Move an object's file to its place, its content on the disk first; leave it where it has none."""
        if target := self.file(entry):
            _moved(source, target)

    def keep(self, source: Path, entry: Entry) -> None:
        """Copy the file of an accepted entry to its place."""
        target = self.file(entry)
        assert target is not None
        self.copy(source, target)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file whole or not at all."""
        part = self.incoming / "part"
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)
        _moved(part, target)


Places = IntakePaths  # its name in 0.1


def _moved(source: Path, target: Path) -> None:
    """Move a file into place, its content on the disk first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


def _listed(entry: Entry, file: Path | None, folder: Path) -> tuple[Any, ...]:
    kept = file.relative_to(folder).as_posix() if file and file.exists() else ""
    return entry.category, files.shown(entry.key), entry.size, entry.reason, entry.score or "", kept


@dataclass(frozen=True)
class Label:
    """One line. `when`: ISO 8601, UTC. `score` and `threshold` are those that the person saw, of model `version`.

    `applied` closes what was said before; its `note` says what came of it.
    """

    sha256: str
    label: Word
    who: str
    when: str
    category: str = ""
    origin: Origin = "scored"
    path: str = ""
    score: float | None = None
    threshold: float | None = None
    version: str = ""
    note: str = ""

    def fits(self, entry: Entry) -> bool:
        """Tell whether an image came into the dataset as what this label says."""
        return self.label == ("defect" if entry.defect else "good")

    def words(self) -> str:
        """Return who said what and when."""
        return f"labelled {self.label} by {self.who} at {self.when}"


@dataclass(frozen=True)
class _Standing:
    """What holds about an image: the last label and, once it has been applied, the outcome.

    `earlier`: another label of it was applied before.
    """

    label: Label
    outcome: str = ""
    earlier: bool = False

    @property
    def applied(self) -> bool:
        """Whether the label has been applied."""
        return bool(self.outcome)


def now() -> str:
    """Return the present time as labels have it, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class LabelLog:
    """The file `path`. Writing needs `writing()`, across processes; reading needs no lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._labels: list[Label] = []

    def writing(self) -> AbstractContextManager[int]:
        """Hold the file's lock."""
        return shared_files.held(self._path.with_suffix(".lock"))

    def append(self, *labels: Label) -> None:
        """Append lines; the disk has them, and their folder's entry, when this returns."""
        if labels:
            shared_files.append(self._path, map(asdict, labels))

    def read(self) -> list[Label]:
        """Return all whole lines, oldest first."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._labels, self._size = list(shared_files.records(self._path, Label)), size
        return self._labels

    def standing(self) -> dict[str, _Standing]:
        """Return what holds about each image, by sha256, in the order in which it was last labelled.

        After an undo that is what was applied before, if anything was.
        """
        found: dict[str, _Standing] = {}
        settled: dict[str, _Standing] = {}
        for item in self.read():
            before = found.pop(item.sha256, None)
            if item.label in SAID:
                found[item.sha256] = _Standing(item, earlier=item.sha256 in settled)
            elif item.label == "applied" and before:
                found[item.sha256] = settled[item.sha256] = _Standing(before.label, item.note or "applied")
            elif item.sha256 in settled:
                found[item.sha256] = settled[item.sha256]
        return found

    def pending(self) -> list[Label]:
        """Return the labels that were not applied yet, oldest first; a skipped image has none."""
        found = (standing for standing in self.standing().values() if not standing.applied)
        return [standing.label for standing in found if standing.label.label != "skip"]

    def signatures(self, entries: Iterable[Entry]) -> list[dict[str, str]]:
        """Return who labelled which of the images of `entries` when, as rows of labels.csv; only labels that fit."""
        standing = self.standing()
        return [
            _row(entry, standing[entry.sha256].label)
            for entry in entries
            if entry.sha256 in standing and standing[entry.sha256].label.fits(entry)
        ]


def _row(entry: Entry, label: Label) -> dict[str, str]:
    return {
        "path": f"{ARRIVED}/{entry.category}/{entry.part}/{entry.name}",
        "sha256": entry.sha256,
        "class": entry.category,
        "label": label.label,
        "who": label.who,
        "when": label.when,
        "object": entry.key,
        "score": "" if label.score is None else f"{label.score:.6g}",
        "version": label.version,
    }
