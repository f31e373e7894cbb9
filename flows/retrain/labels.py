"""What people said about images: an append-only file. The newest line about an image counts, and undo is a line too."""

import datetime
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flows.core import shared_files
from flows.retrain.ledger import Entry
from pvqae.core.layout import ARRIVED

Word = Literal["good", "defect", "neither", "skip", "undo", "applied"]  # neither: a wrong photograph
# gate: a normal of the gate that arrived; source: one that the dataset came with; labelled: in the dataset by a label.
Origin = Literal["held", "scored", "test", "gate", "source", "labelled"]
KIND = "defect/reviewed"  # the part of a labelled defect; a person may sort them into other kinds later
SAID = ("good", "defect", "neither", "skip")


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


class Log:
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
