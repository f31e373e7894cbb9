"""Apply: all labels that were not applied yet come into the dataset as one DVC version, with who and when.

Each image comes in as any that arrives: its file is kept next to the dataset, noted in the ledger, then admitted. So
after a crash at any step the next apply, or the next retraining, does what is missing; nothing is lost or comes in
twice.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flows.adapters.landing import LandingError
from flows.adapters.versioning import Versioning
from flows.retrain.admission import admit, counted, file_of
from flows.retrain.arrivals import decide
from flows.retrain.index import Index
from flows.retrain.ledger import KIND, Entry, IntakePaths, Label, LabelLog, Ledger, State, now
from flows.review.items import Item
from pvqae.core.config import Params
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.datasets import arrivals

_IN, _NOT, _WAITS = "in the dataset", "not taken", "waits for the next apply"
_OUT = "out of the dataset"
_NOTED = {
    "test": "only noted: an image of the test split never teaches",
    "source": "only noted: the dataset came with it; correct it there and add it again",
}


@dataclass(frozen=True)
class Applied:
    """What one apply did. `outcomes`: a label and what came of it; `version`: DVC's hash of the dataset afterwards.

    `withdrawn`: how many images were taken out.
    """

    outcomes: tuple[tuple[Label, str], ...]
    admitted: tuple[Entry, ...]
    version: str
    withdrawn: int = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """What came in and what did not, for people."""
        if not (self.outcomes or self.admitted or self.withdrawn):
            return ("nothing to apply: label some images first",)
        did = [f"{len(self.admitted)} images came into the dataset ({counted(self.admitted)})"] if self.admitted else []
        did += [f"{self.withdrawn} images were taken out of the dataset"] if self.withdrawn else []
        others = [f"{label.path}: {text}" for label, text in self.outcomes if not text.startswith(_IN)]
        first = f"{', '.join(did)}: DVC version {self.version}" if did else "no image came into the dataset"
        return (first, *others)


class Applier:
    """Applies the labels of `log`. The caller holds the dataset's lock and the log's."""

    def __init__(self, paths: IntakePaths, params: Params, ledger: Ledger, log: LabelLog) -> None:
        self._paths, self._params, self._ledger, self._log = paths, params, ledger, log

    def run(
        self, find: Callable[[str], Item | None], dvc: Versioning, record: Callable[[str], str],
        only: Iterable[Label] | None = None,
    ) -> Applied:  # fmt: skip
        """Apply all pending labels, or `only` these of them.

        `find` gives a scored image by its sha256; `record` commits with a message and returns the commit.
        """
        dvc.data_hash(self._paths.dataset)  # nothing comes in where the .dvc file is damaged
        # Copied before a crash, but not removed.
        for entry in self._ledger.entries("accepted", "versioned", "withdrawn", "quarantined"):
            if not entry.name:
                continue
            (self._paths.review / entry.category / entry.name).unlink(missing_ok=True)
            if entry.state in ("accepted", "versioned"):
                (self._paths.home / "quarantine" / entry.category / entry.name).unlink(missing_ok=True)
        outcomes = tuple(
            (label, self._settle(label, find)) for label in (self._log.pending() if only is None else only)
        )
        raw = Layout(self._paths.root, self._paths.dataset).raw
        withdrawn = len(self._ledger.entries("withdrawn"))
        admitted = admit(self._paths, raw, self._ledger, dvc, record)
        version = dvc.data_hash(self._paths.dataset)
        when = now()
        done = [(label, text) for label, text in outcomes if not text.startswith(_WAITS)]
        self._log.append(*(replace(label, label="applied", when=when, note=text) for label, text in done))
        self._ledger.write_lists(self._paths)
        return Applied(outcomes, admitted, version, withdrawn)

    def _settle(self, label: Label, find: Callable[[str], Item | None]) -> str:
        """Keep one labelled image next to the dataset, or say why not."""
        if label.origin in _NOTED:
            return _NOTED[label.origin]
        states: tuple[tuple[State, ...], ...] = (("quarantined",), ("review",), ("accepted", "versioned"))
        entries = (entry for some in states for entry in self._ledger.entries(*some))  # of one content the last counts
        entry = {entry.sha256: entry for entry in entries}.get(label.sha256)
        if entry and entry.state == "quarantined" and label.label != "neither":
            return self._again(label, entry)
        if entry and entry.state != "quarantined":
            return self._held(label, entry) if entry.state == "review" else self._known(label, entry)
        if label.label == "neither":  # only scored, or taken out before a crash
            return f"{_OUT}: {label.words()}"
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
        if label.label == "neither":
            self._refuse(label, entry, "quarantined", file)
            text = f"{_OUT}: {label.words()}"
        else:
            text = f"{_IN} as {self._accept(label, entry, file).part}"
        file.unlink()
        return text

    def _again(self, label: Label, entry: Entry) -> str:
        """Bring back what a person took out before."""
        file = self._paths.file(entry)
        if label.origin != "labelled" or not file or not file.is_file():
            return f"{_NOT}: {entry.reason}"
        text = f"{_IN} as {self._accept(label, entry, file).part}"
        file.unlink()
        return text

    def _known(self, label: Label, entry: Entry) -> str:
        """Settle an image that the dataset has: move it, or take it out, where a person looked at it as such."""
        if label.fits(entry):
            return f"{_IN} as {entry.part}"
        file = file_of(self._paths, entry)
        if file is None:
            return f"{_NOT}: its file is gone from the dataset"
        if label.label == "neither":
            self._refuse(label, entry, "withdrawn", file)
            return f"{_OUT}: {label.words()}"
        if label.origin not in ("gate", "labelled"):
            return f"{_NOT}: the dataset has it as {entry.part} already"
        return f"{_IN} as {self._accept(label, entry, file).part}"

    def _refuse(self, label: Label, entry: Entry, state: State, file: Path) -> None:
        """Copy a wrong photograph to the quarantine and note it."""
        refused = replace(entry, state=state, reason=label.words())
        self._paths.keep(file, refused)
        self._ledger.append([refused])

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
        accepted = replace(entry, state="accepted", part=part, reason=label.words(), score=label.score)
        self._paths.keep(file, accepted)
        self._ledger.append([accepted])
        return accepted

    @cached_property
    def _index(self) -> Index:
        """Of the dataset, and of what is on its way there."""
        index = Index.of(self._paths, self._params)
        index.remember(self._paths, self._ledger.entries("accepted"), self._params.image.bits)
        return index
