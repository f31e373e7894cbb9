"""Where the intake of a dataset keeps its files, and the lists beside them for people."""

import csv
import io
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from flows.arrivals_ledger import Entry, Ledger
from pvqae.datasets import manifest
from pvqae.files import write_text


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
            rows.writerow(
                (entry.category, manifest.shown(entry.key), entry.size, entry.reason, entry.score or "", kept)
            )
        if entries or folder.is_dir():
            write_text(folder / f"{folder.name if state == 'quarantined' else 'review'}.csv", out.getvalue())
