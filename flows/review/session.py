"""The review of one dataset: what is to be looked at, what was said, and what a label does."""

import csv
import datetime
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from flows.retrain.arrivals_ledger import Ledger, Places
from flows.retrain.labels import SAID, Label, Log, Standing, Word, labels_file
from flows.review import review_queues
from flows.review.review_queues import QUEUES, Item
from pvqae.core.errors import ConfigError, DataError
from pvqae.core.files import write_text

LONGEST = 80  # characters of a name
TITLES = {"held": "Held back", "near": "Near the threshold", "alarms": "False alarms?", "skipped": "Skipped"}
EFFECTS = {
    "held": ("joins the images to learn from", "joins the gate as a defect; nothing learns from it"),
    "scored": ("joins the images to learn from", "joins the gate as a defect; nothing learns from it"),
    "test": ("confirms the false alarm; only noted", "says that the test split is wrong; only noted"),
}


@dataclass(frozen=True)
class Source:
    """Where the images to look at come from. `most`: of the queues of scored images, at most so many each."""

    places: Places
    categories: tuple[str, ...]
    most: int
    evaluated: Callable[[str], str]  # class → the registered version of the last evaluation, "" if none


def name_of(who: str) -> str:
    """A person's name as it is kept: one line of printable characters. Raises `ConfigError` when nothing is left."""
    name = " ".join("".join(c if c.isprintable() else " " for c in who).split())[:LONGEST]
    if not name:
        raise ConfigError("who: expected your name, found none; write it at the top of the page")
    return name


class Desk:
    """Thread-safe. `refresh` looks at the folders again; between two of them the queues keep their order."""

    def __init__(self, source: Source) -> None:
        self.places, self._source = source.places, source
        self.log = Log(labels_file(source.places))
        self._lock = threading.Lock()
        self._queues: dict[str, list[Item]] = {}
        self._items: dict[str, Item] = {}
        self.refresh()

    def refresh(self) -> None:
        root, dataset, most = self.places.root, self.places.dataset, self._source.most
        applied = {sha256 for sha256, found in self.log.standing().items() if found.applied}

        held = review_queues.held(self.places, Ledger(self.places.ledger))
        tests = [i for i in review_queues.tests(root, dataset, self._source.evaluated) if i.sha256 not in applied]
        known = applied | {item.sha256 for item in (*held, *tests)}

        def scored() -> Iterator[Item]:
            """One after another: there may be more than fit into memory."""
            every = review_queues.scored(root, dataset, self._source.categories)
            return (item for item in every if item.sha256 not in known)

        queues = {
            "held": [item for item in held if item.sha256 not in applied],
            "near": review_queues.near(scored(), most),
            "alarms": review_queues.alarms(chain(tests, scored()), most + len(tests)),
        }
        with self._lock:
            self._queues = queues
            self._items = {item.sha256: item for name in reversed(QUEUES) for item in queues[name]}

    def item(self, sha256: str) -> Item | None:
        return self._items.get(sha256)

    def state(self) -> dict[str, Any]:
        """What the page shows: each queue with the images that nobody has labelled; labels that wait for Apply."""
        with self._lock:
            standing, queues, items = self.log.standing(), dict(self._queues), list(self._items.values())
        left = {name: [item for item in queues[name] if item.sha256 not in standing] for name in QUEUES}
        left["skipped"] = [item for item in items if _skipped(standing.get(item.sha256))]
        pending = self.log.pending()
        done = sum(item.sha256 in standing for item in items) - len(left["skipped"])
        counts = {word: sum(label.label == word for label in pending) for word in ("good", "defect")}
        return {
            "queues": [{"name": n, "title": TITLES[n], "items": [_shown(i) for i in left[n]]} for n in TITLES],
            "total": len(items),
            "done": done,
            "pending": counts,
        }

    def label(self, sha256: str, word: Word, who: str) -> None:
        """Say what an image is; durable when this returns. Saying it twice is saying it once.

        Raises `DataError` for an image that is in no queue, or whose label has been applied meanwhile.
        """
        item, name = self.item(sha256), name_of(who)
        if item is None:
            raise DataError(f"{sha256[:12]}: expected an image of a queue, found none; load the page again")
        with self.log.writing():
            before = self.log.standing().get(sha256)
            if before and before.applied:
                raise DataError(f"{item.path}: its label has been applied already; load the page again")
            if not before or (before.label.label, before.label.who) != (word, name):
                self.log.append(_said(item, word, name))
        self.write_disagreements()

    def undo(self, who: str) -> Item | None:
        """Take the last label of `who` back that was not applied; the image it was about, None if there is none."""
        name = name_of(who)
        with self.log.writing():
            mine = [s.label for s in self.log.standing().values() if not s.applied and s.label.who == name]
            last = next((label for label in reversed(mine) if label.sha256 in self._items), None)
            if last:
                self.log.append(_said(self._items[last.sha256], "undo", name))
        self.write_disagreements()
        return self._items[last.sha256] if last else None

    def write_disagreements(self) -> None:
        """disagreements.csv: labels about images that the dataset keeps as they are, for a person to look into."""
        kept = [
            (s.label, s.outcome or "only noted")
            for s in self.log.standing().values()
            if s.label.label != "skip" and (s.label.origin == "test" or s.outcome.startswith("not taken"))
        ]
        file = self.places.review / "disagreements.csv"
        if kept or file.exists():
            write_text(file, _table(kept))


def _skipped(found: Standing | None) -> bool:
    return bool(found and found.label.label == "skip")


def _said(item: Item, word: Word, who: str) -> Label:
    assert word in (*SAID, "undo")
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Label(
        item.sha256, word, who, when, item.category, item.origin, item.path, item.score, item.threshold, item.version
    )


def _shown(item: Item) -> dict[str, Any]:
    good, defect = EFFECTS[item.origin]
    return {
        "id": item.sha256,
        "category": item.category,
        "origin": item.origin,
        "name": Path(item.path).name,
        "path": item.path,
        "score": item.score,
        "threshold": item.threshold,
        "version": item.version,
        "reason": item.reason,
        "good": good,
        "defect": defect,
    }


def _table(kept: Sequence[tuple[Label, str]]) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("path", "class", "origin", "person", "label", "when", "score", "threshold", "version", "outcome"))
    for label, outcome in kept:
        what = (label.path, label.category, label.origin, label.who, label.label, label.when)
        rows.writerow((*what, label.score, label.threshold, label.version, outcome))
    return out.getvalue()
