"""From accepted images to a DVC version of their dataset, with a commit that says what came in."""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flows.adapters.versioning import Versioning
from flows.retrain import labels
from flows.retrain.arrivals_ledger import Entry, Ledger, Places, put
from pvqae.core.errors import DataError
from pvqae.core.files import digest
from pvqae.core.layout import ARRIVED
from pvqae.datasets import arrivals


def admit(
    places: Places, raw: Path, ledger: Ledger, dvc: Versioning, record: Callable[[str], str]
) -> tuple[Entry, ...]:
    """Bring all accepted images into the dataset at `raw` as one DVC version; returns their entries.

    `record` commits the version with a message and returns the commit. An accepted image whose file is gone or changed
    is told of and counts as new again: the next run fetches it.
    """
    accepted = []
    for entry in ledger.entries("accepted"):
        try:
            _copy_in(places, entry, raw)
            accepted.append(entry)
        except DataError as error:
            print(error, file=sys.stderr, flush=True)
            ledger.append([replace(entry, state="lost", reason=str(error))])
    if not accepted:
        return ()
    signed = labels.signatures(places, ledger)
    arrivals.sign(raw, signed)
    dvc.version_dataset(places.dataset)
    record(message(places.dataset, accepted, signed))
    version = dvc.data_hash(places.dataset)
    versioned = [replace(entry, state="versioned", reason=version) for entry in accepted]
    ledger.append(versioned)
    shutil.rmtree(places.home / "staged", ignore_errors=True)
    return tuple(versioned)


def _copy_in(places: Places, entry: Entry, raw: Path) -> None:
    source, target = places.file(entry), raw / ARRIVED / entry.category / entry.part / entry.name
    if target.exists() and digest(target) == entry.sha256:
        return
    if not source or not source.exists() or digest(source) != entry.sha256:
        raise DataError(
            f"{source}: expected the accepted image {entry.key} with sha256 {entry.sha256}, found it gone or changed; "
            "if it is in the landing area still, the next run fetches it again, else put it there"
        )
    beside = places.home / "incoming" / "part"
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, beside)
    target.parent.mkdir(parents=True, exist_ok=True)
    put(beside, target)


def message(dataset: str, entries: Sequence[Entry], signed: Sequence[Mapping[str, str]] = ()) -> str:
    """The commit's message: what came in, by class, then each file with the object it was, and who labelled it when."""
    counts = Counter(f"{entry.category}/{entry.part}" for entry in entries)
    head = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    who = {row["sha256"]: f", labelled {row['label']} by {row['who']} at {row['when']}" for row in signed}
    lines = sorted(
        # A key may hold anything, also line breaks; a name is checked when it is given.
        re.sub(r"[^\x20-\x7e]", "?", f"{entry.category}/{entry.part}/{entry.name} from {entry.key}")
        + who.get(entry.sha256, "")
        for entry in entries
    )
    came = "labelled" if all(entry.sha256 in who for entry in entries) else "arrived"
    return f"{dataset}: {len(entries)} images {came} ({head})\n\n" + "\n".join(lines) + "\n"
