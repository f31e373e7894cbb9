"""SHA256SUMS: a folder's files by their hashes, so that a flipped byte, a missing file or a foreign one is noticed."""

import re
from pathlib import Path

from pvqae.datasets.manifest import digest
from pvqae.errors import IntegrityError

FILE = "SHA256SUMS"


def write(folder: Path) -> str:
    """List all files of `folder` there; returns the list's own sha256."""
    names = sorted(p.name for p in folder.iterdir() if p.name != FILE)
    (folder / FILE).write_text("".join(f"{digest(folder / n)}  {n}\n" for n in names), "utf-8")
    return digest(folder / FILE)


def verify(folder: Path, what: str, repair: str) -> str:
    """Check every file against the list; returns the list's sha256. `what` the folder should be and how to `repair` it
    are words of the error.

    Raises `IntegrityError` for a missing, foreign or changed file.
    """
    sums = folder / FILE
    if not sums.is_file():
        raise IntegrityError(f"{folder}: expected {what} with {FILE}, found none; {repair}")
    text = sums.read_bytes()
    if not re.fullmatch(rb"([0-9a-f]{64}  [\w.-]+\n)+", text):
        raise IntegrityError(f"{sums}: expected lines of sha256 and name, found others; {repair}")
    lines = (line.split("  ") for line in text.decode().splitlines())
    listed = {name: sha256 for sha256, name in lines}
    present = {p.name for p in folder.iterdir()} - {FILE}
    if present != set(listed):
        raise IntegrityError(f"{folder}: expected the files {sorted(listed)}, found {sorted(present)}; {repair}")
    for name, expected in listed.items():
        found = _digest(folder / name)
        if found != expected:
            raise IntegrityError(f"{folder / name}: expected sha256 {expected}, found {found}; {repair}")
    return digest(sums)


def _digest(path: Path) -> str:
    try:
        return digest(path)
    except OSError as error:
        return f"none ({error.strerror})"
