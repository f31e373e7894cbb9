"""The review of one dataset: what is to be looked at, what was said, and what a label does."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from flows.retrain.ledger import SAID, IntakePaths, Label, LabelLog, Ledger, Word, now
from flows.review import items
from flows.review.items import Item
from pvqae.core.errors import ConfigError, DataError
from pvqae.core.files import write_table

_LONGEST = 80  # characters of a name
_SHOWN = ("good", "defect", "neither")  # labels that Apply does something about
_NOTED = ("test", "source")  # origins of images that no label moves
_QUEUES = ("held", "near", "alarms", "gate")
_TITLES = {
    "held": "Held back",
    "near": "Near the threshold",
    "alarms": "False alarms?",
    "gate": "Odd in the gate",
    "skipped": "Skipped",
    "labelled": "Labelled",
}
_LEARNT, _JUDGES = "joins the images to learn from", "joins the gate as a defect; nothing learns from it"
_WRONG = "says that the dataset is wrong; only noted"
_EFFECTS = {  # of good, defect, neither
    "held": (_LEARNT, _JUDGES, "goes to quarantine"),
    "scored": (_LEARNT, _JUDGES, "never comes into the dataset"),
    "test": ("confirms the false alarm; only noted", "says that the test split is wrong; only noted", _WRONG),
    "gate": ("stays in the gate", "stays in the gate, as a defect", "goes from the gate to quarantine"),
    "source": ("confirms it; only noted", _WRONG, _WRONG),
    "labelled": (_LEARNT, _JUDGES, "goes from the dataset to quarantine"),
}


class ReviewSession:
    """The queues of one dataset and the labels, for several threads.

    `refresh` looks at the folders again; between two of them the queues keep their order. The queues of scored images
    have at most `most` images each. `evaluated` of a class: the registered version of its last evaluation, "" if none.
    Images that were labelled before are shown apart: they may be labelled again.
    """

    def __init__(
        self, paths: IntakePaths, categories: tuple[str, ...], most: int, evaluated: Callable[[str], str]
    ) -> None:
        self.paths, self._categories, self._most, self._evaluated = paths, categories, most, evaluated
        self.log = LabelLog(paths.labels)
        self._lock = threading.Lock()
        self._queues: dict[str, list[Item]] = {}
        self._items: dict[str, Item] = {}
        self._past: dict[str, Item] = {}  # labelled before
        self.refresh()

    def refresh(self) -> None:
        """Fill the queues from the ledger, the scores and the last evaluation."""
        root, dataset = self.paths.root, self.paths.dataset
        applied = {sha256 for sha256, found in self.log.standing().items() if found.applied or found.earlier}

        ledger = Ledger(self.paths.ledger)
        held = items.held(self.paths, ledger)
        past = {item.sha256: item for item in items.labelled(self.paths, ledger, self.log)}
        tests = [item for item in items.tests(root, dataset, self._evaluated) if item.sha256 not in applied]
        known = applied | {item.sha256 for item in (*held, *tests)}

        def scored() -> Iterator[Item]:
            """Yield one after another: there may be more than fit into memory."""
            return (item for item in items.scored(root, dataset, self._categories) if item.sha256 not in known)

        queues = {
            "held": [item for item in held if item.sha256 not in applied],
            "near": items.near(scored(), self._most),
            "alarms": items.alarms(chain(tests, scored()), self._most + len(tests)),
            "gate": [item for item in items.gate(self.paths, ledger) if item.sha256 not in applied],
        }
        with self._lock:
            self._queues = queues
            self._items = {item.sha256: item for name in reversed(_QUEUES) for item in queues[name]}
            self._past = past

    def item(self, sha256: str) -> Item | None:
        """Return the image of a queue, None where it is in none."""
        return self._items.get(sha256) or self._past.get(sha256)

    def state(self) -> dict[str, Any]:
        """Return what the page shows: each queue's images without a label, and the labels that wait for Apply."""
        with self._lock:
            standing, queues, every = self.log.standing(), dict(self._queues), list(self._items.values())
            known = self._past | self._items
        left = {name: [item for item in queues[name] if item.sha256 not in standing] for name in _QUEUES}
        skipped = {sha256 for sha256, found in standing.items() if found.label.label == "skip"}
        left["skipped"] = [item for item in every if item.sha256 in skipped]
        # The newest first, those that wait for Apply among them.
        said = ((known[sha256], found) for sha256, found in reversed(standing.items()) if sha256 in known)
        left["labelled"] = [
            replace(item, reason=found.label.words() + ", not applied yet" * (not found.applied))
            for item, found in said
            if found.label.label != "skip"
        ]
        pending = self.log.pending()
        return {
            "queues": [{"name": n, "title": _TITLES[n], "items": [_shown(i) for i in left[n]]} for n in _TITLES],
            "total": len(every),
            "done": sum(item.sha256 in standing for item in every) - len(left["skipped"]),
            "pending": {word: sum(label.label == word for label in pending) for word in _SHOWN},
        }

    def label(self, sha256: str, word: Word, who: str) -> None:
        """Say what an image is; the disk has it when this returns. Saying it twice is saying it once.

        A label that was applied before can be changed, but not skipped. Raises `DataError` for an image that is in no
        queue, or whose label has been applied meanwhile.
        """
        item, name = self.item(sha256), _name_of(who)
        if item is None:
            raise DataError(f"{sha256[:12]}: this image is in no queue; load the page again")
        if word == "skip" and sha256 in self._past:
            return
        with self.log.writing():
            before = self.log.standing().get(sha256)
            if before and before.applied and sha256 not in self._past:
                raise DataError(f"{item.path}: its label has been applied already; load the page again")
            if not before or (before.label.label, before.label.who) != (word, name):
                self.log.append(_said(item, word, name))
        self.write_disagreements()

    def undo(self, who: str) -> Item | None:
        """Take back the last label of `who` that was not applied; return its image, None if there is none."""
        name = _name_of(who)
        with self.log.writing():
            mine = [s.label for s in self.log.standing().values() if not s.applied and s.label.who == name]
            last = next((item for label in reversed(mine) if (item := self.item(label.sha256))), None)
            if last:
                self.log.append(_said(last, "undo", name))
        self.write_disagreements()
        return last

    def write_disagreements(self) -> None:
        """Write disagreements.csv: labels that the dataset does not follow, for a person to look into."""
        kept = [
            _disagreement(s.label, s.outcome or "only noted")
            for s in self.log.standing().values()
            if s.label.label != "skip" and (s.label.origin in _NOTED or s.outcome.startswith("not taken"))
        ]
        file = self.paths.review / "disagreements.csv"
        if kept or file.exists():
            names = ("path", "class", "origin", "person", "label", "when", "score", "threshold", "version", "outcome")
            write_table(file, names, kept)


def _name_of(who: str) -> str:
    """Return a person's name as it is kept: one line of printable characters. Raises `ConfigError` for an empty one."""
    name = " ".join("".join(c if c.isprintable() else " " for c in who).split())[:_LONGEST]
    if not name:
        raise ConfigError("who: your name is missing; write it at the top of the page")
    return name


def _said(item: Item, word: Word, who: str) -> Label:
    assert word in (*SAID, "undo")
    about = (item.category, item.origin, item.path, item.score, item.threshold, item.version)
    return Label(item.sha256, word, who, now(), *about)


def _shown(item: Item) -> dict[str, Any]:
    good, defect, neither = _EFFECTS[item.origin]
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
        "neither": neither,
    }


def _disagreement(label: Label, outcome: str) -> tuple[Any, ...]:
    what = (label.path, label.category, label.origin, label.who, label.label, label.when)
    return (*what, label.score, label.threshold, label.version, outcome)
