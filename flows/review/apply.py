"""Apply: all labels that were not applied yet come into the dataset as one DVC version, with who and when.

Each image goes the way of any that arrives: put beside the dataset, noted in the ledger, then admitted. So after a
crash at any step the next apply, or the next retraining, does what is missing; nothing is lost or comes in twice.
"""

import datetime
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flows.adapters.landing import LandingError
from flows.adapters.versioning import Versioning
from flows.retrain import admit, arrivals_index
from flows.retrain.arrivals_index import Index
from flows.retrain.arrivals_ledger import Entry, Ledger, Places, put, write_lists
from flows.retrain.labels import KIND, Label, Log, fits
from flows.review import album
from flows.review.review_queues import Item
from pvqae.core.config import Params
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.datasets import arrivals, sources


@dataclass(frozen=True)
class Applied:
    """What one apply did. `outcomes`: a label and what came of it."""

    outcomes: tuple[tuple[Label, str], ...]
    admitted: tuple[Entry, ...]
    version: str  # DVC's hash of the dataset afterwards

    @property
    def lines(self) -> tuple[str, ...]:
        """For people."""
        if not self.outcomes and not self.admitted:
            return ("nothing to apply: label some images first",)
        counts = Counter(f"{entry.category}/{entry.part}" for entry in self.admitted)
        came = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        first = f"{len(self.admitted)} images came into the dataset ({came}): DVC version {self.version}"
        others = [f"{label.path}: {text}" for label, text in self.outcomes if not text.startswith(IN)]
        return (first if self.admitted else "no image came into the dataset", *others)


IN, NOT, WAITS = "in the dataset", "not taken", "waits for the next apply"


class Applier:
    """Applies the labels of `log`. The caller holds the dataset's lock and the log's."""

    def __init__(self, places: Places, params: Params, ledger: Ledger, log: Log) -> None:
        self._places, self._params, self._ledger, self._log = places, params, ledger, log
        self._raw = Layout(places.root, places.dataset).raw

    def run(self, find: Callable[[str], Item | None], dvc: Versioning, record: Callable[[str], str]) -> Applied:
        """`find` gives a scored image by its sha256; `record` commits with a message and returns the commit."""
        dvc.data_hash(self._places.dataset)  # nothing comes in where the .dvc file is damaged
        self._sweep()
        pending = self._log.pending()
        outcomes = tuple((label, self._settle(label, find)) for label in pending)
        admitted = admit.admit(self._places, self._raw, self._ledger, dvc, record)
        version = dvc.data_hash(self._places.dataset)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        done = [(label, text) for label, text in outcomes if not text.startswith(WAITS)]
        self._log.append(*(replace(label, label="applied", when=now, note=text) for label, text in done))
        write_lists(self._places, self._ledger)
        return Applied(outcomes, admitted, version)

    def _sweep(self) -> None:
        """Held files whose copies the ledger has already: a crash came before they were removed."""
        for entry in self._ledger.entries("accepted", "versioned"):
            (self._places.review / entry.category / entry.name).unlink(missing_ok=True)

    def _settle(self, label: Label, find: Callable[[str], Item | None]) -> str:
        """Put one labelled image beside the dataset, or say why not."""
        if label.origin == "test":
            return "only noted: an image of the test split never teaches"
        known = {entry.sha256: entry for entry in self._ledger.entries("accepted", "versioned")}.get(label.sha256)
        if known:
            same = fits(known, label)
            return f"{IN} as {known.part}" if same else f"{NOT}: the dataset has it as {known.part} already"
        held = {entry.sha256: entry for entry in self._ledger.entries("review")}.get(label.sha256)
        if held:
            return self._held(label, held)
        item, index = find(label.sha256), self._index
        try:
            return self._scored(label, item, index) if item else f"{NOT}: its scores are gone; score its source again"
        except LandingError as error:
            return f"{WAITS}: {error}"
        except DataError as error:
            return f"{NOT}: {error}"

    def _held(self, label: Label, entry: Entry) -> str:
        file = self._places.file(entry)
        if not file or not file.is_file():
            return f"{NOT}: its held file is gone"
        found = self._stage(label, entry, file)
        file.unlink()
        return found

    def _scored(self, label: Label, item: Item, index: Index) -> str:
        """As any new image, but the gate's share is not drawn: what judges champions is not chosen by their scores."""
        with album.file_of(item) as file:
            bits = self._params.image.bits
            image = arrivals_index.known(file, label.path, label.category, label.label == "good", bits)
            if isinstance(image, str):
                return f"{NOT}: {image}"
            if copy := index.copy_of(label.sha256):
                return f"{NOT}: the same file as {copy}"
            alike, other = index.nearest(image)
            if alike >= self._params.retrain.duplicate:
                return f"{NOT}: the same photograph as {other}"
            if misfit := index.misfit(image) if label.label == "good" else "":
                return f"{NOT}: {misfit}"
            name = arrivals.file_name(Path(label.path).name, label.sha256)
            key = f"scored/{label.category}/{Path(label.path).name}"
            entry = Entry(key, label.sha256, file.stat().st_size, "review", "", label.category, label.sha256, name)
            text = self._stage(label, entry, file)
            index.add(image)
        return text

    def _stage(self, label: Label, entry: Entry, file: Path) -> str:
        part = "good" if label.label == "good" else KIND
        reason = f"labelled {label.label} by {label.who} at {label.when}"
        accepted = replace(entry, state="accepted", part=part, reason=reason, score=label.score)
        target, beside = self._places.file(accepted), self._places.home / "incoming" / "review"
        assert target is not None
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, beside)
        put(beside, target)
        self._ledger.append([accepted])
        return f"{IN} as {part}"

    @cached_property
    def _index(self) -> Index:
        """Of the dataset, and of what is on its way there or held."""
        found, bits = sources.scan(self._params.data.source, self._raw), self._params.image.bits
        index = arrivals_index.build(found, self._raw, self._places.home / "index.npz", bits)
        for entry in self._ledger.entries("accepted"):
            file = self._places.file(entry)
            image = arrivals_index.known(file, entry.key, entry.category, not entry.defect, bits) if file else ""
            if not isinstance(image, str):
                index.add(image)
        return index
