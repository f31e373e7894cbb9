"""Apply: all labels that were not applied yet come into the dataset as one DVC version, with who and when.

Each image comes in as any that arrives: its file is kept next to the dataset, noted in the ledger, then admitted. So
after a crash at any step the next apply, or the next retraining, does what is missing; nothing is lost or comes in
twice.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flows.adapters.landing import LandingError
from flows.adapters.versioning import Versioning
from flows.retrain.admission import admit, counted
from flows.retrain.arrivals import decide
from flows.retrain.index import Index
from flows.retrain.labels import KIND, Label, Log
from flows.retrain.ledger import Entry, IntakePaths, Ledger
from flows.review.items import Item
from pvqae.core.config import Params
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.datasets import arrivals

_IN, _NOT, _WAITS = "in the dataset", "not taken", "waits for the next apply"


@dataclass(frozen=True)
class Applied:
    """What one apply did. `outcomes`: a label and what came of it; `version`: DVC's hash of the dataset afterwards."""

    outcomes: tuple[tuple[Label, str], ...]
    admitted: tuple[Entry, ...]
    version: str

    @property
    def lines(self) -> tuple[str, ...]:
        """What came in and what did not, for people."""
        if not self.outcomes and not self.admitted:
            return ("nothing to apply: label some images first",)
        came = f"{len(self.admitted)} images came into the dataset ({counted(self.admitted)})"
        others = [f"{label.path}: {text}" for label, text in self.outcomes if not text.startswith(_IN)]
        first = f"{came}: DVC version {self.version}" if self.admitted else "no image came into the dataset"
        return (first, *others)


class Applier:
    """Applies the labels of `log`. The caller holds the dataset's lock and the log's."""

    def __init__(self, paths: IntakePaths, params: Params, ledger: Ledger, log: Log) -> None:
        self._paths, self._params, self._ledger, self._log = paths, params, ledger, log

    def run(self, find: Callable[[str], Item | None], dvc: Versioning, record: Callable[[str], str]) -> Applied:
        """Apply all pending labels.

        `find` gives a scored image by its sha256; `record` commits with a message and returns the commit.
        """
        dvc.data_hash(self._paths.dataset)  # nothing comes in where the .dvc file is damaged
        for entry in self._ledger.entries("accepted", "versioned"):  # copied before a crash, but not removed
            (self._paths.review / entry.category / entry.name).unlink(missing_ok=True)
        outcomes = tuple((label, self._settle(label, find)) for label in self._log.pending())
        raw = Layout(self._paths.root, self._paths.dataset).raw
        admitted = admit(self._paths, raw, self._ledger, dvc, record)
        version = dvc.data_hash(self._paths.dataset)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        done = [(label, text) for label, text in outcomes if not text.startswith(_WAITS)]
        self._log.append(*(replace(label, label="applied", when=now, note=text) for label, text in done))
        self._ledger.write_lists(self._paths)
        return Applied(outcomes, admitted, version)

    def _settle(self, label: Label, find: Callable[[str], Item | None]) -> str:
        """Keep one labelled image next to the dataset, or say why not."""
        if label.origin == "test":
            return "only noted: an image of the test split never teaches"
        entries = (*self._ledger.entries("review"), *self._ledger.entries("accepted", "versioned"))
        if entry := {entry.sha256: entry for entry in entries}.get(label.sha256):
            if entry.state == "review":
                return self._held(label, entry)
            return (
                f"{_IN} as {entry.part}" if label.fits(entry) else f"{_NOT}: the dataset has it as {entry.part} already"
            )
        item, index = find(label.sha256), self._index
        try:
            return self._scored(label, item, index) if item else f"{_NOT}: its scores are gone; score its source again"
        except LandingError as error:
            return f"{_WAITS}: {error}"
        except DataError as error:
            return f"{_NOT}: {error}"

    def _held(self, label: Label, entry: Entry) -> str:
        file = self._paths.file(entry)
        if not file or not file.is_file():
            return f"{_NOT}: its held file is gone"
        found = self._accept(label, entry, file)
        file.unlink()
        return f"{_IN} as {found.part}"

    def _scored(self, label: Label, item: Item, index: Index) -> str:
        """Settle as any new image, without the gate's share: scores must not choose what judges champions."""
        with item.file() as file:
            name = Path(label.path).name
            key, kept = f"scored/{label.category}/{name}", arrivals.file_name(name, label.sha256)
            new = Entry(key, label.sha256, file.stat().st_size, "review", "", label.category, label.sha256, kept)
            found, image = decide(
                new,
                file,
                index,
                self._params,
                lambda entry, file: self._accept(label, entry, file),
                label.label == "good",
            )
        if image is None:
            return f"{_NOT}: {found.reason}"
        index.add(image)
        return f"{_IN} as {found.part}"

    def _accept(self, label: Label, entry: Entry, file: Path) -> Entry:
        part = "good" if label.label == "good" else KIND
        reason = f"labelled {label.label} by {label.who} at {label.when}"
        accepted = replace(entry, state="accepted", part=part, reason=reason, score=label.score)
        self._paths.keep(file, accepted)
        self._ledger.append([accepted])
        return accepted

    @cached_property
    def _index(self) -> Index:
        """Of the dataset, and of what is on its way there."""
        index = Index.of(self._paths, self._params)
        index.remember(self._paths, self._ledger.entries("accepted"), self._params.image.bits)
        return index
