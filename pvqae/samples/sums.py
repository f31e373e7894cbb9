"""SHA256SUMS: a folder's files by their hashes, so that a flipped byte, a missing file or a foreign one is noticed."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvqae.core.errors import IntegrityError
from pvqae.core.files import open_regular, parse_json, parse_tensors
from pvqae.samples.manifest import digest

if TYPE_CHECKING:
    from torch import Tensor

FILE = "SHA256SUMS"


def write(folder: Path) -> str:
    """List all files of `folder` there; returns the list's own sha256."""
    names = sorted(p.name for p in folder.iterdir() if p.name != FILE)
    (folder / FILE).write_text("".join(f"{digest(folder / n)}  {n}\n" for n in names), "utf-8")
    return digest(folder / FILE)


@dataclass(frozen=True, eq=False)
class Sealed:
    """A folder's files as they were read and checked. Who takes all from here computes with what was checked, whatever
    happens to the files meanwhile."""

    folder: Path
    sha256: str  # of the list
    files: Mapping[str, bytes]  # the list included

    def json(self, name: str, repair: str) -> dict[str, Any]:
        """The JSON object of a file that is there. Raises `IntegrityError` for anything else."""
        return parse_json(self.files[name], self.folder / name, repair)

    def tensors(self, name: str) -> "dict[str, Tensor]":
        """The tensors of a safetensors file that is there."""
        return parse_tensors(self.files[name])


def verify(folder: Path, what: str, repair: str) -> str:
    """Check every file against the list; returns the list's sha256. Raises as `read`."""
    return read(folder, what, repair).sha256


def read(folder: Path, what: str, repair: str) -> Sealed:
    """Read every file, once, and check it against the list. `what` the folder should be and how to `repair` it are
    words of the error.

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
    files = {FILE: text}
    for name, expected in listed.items():
        files[name], found = _content(folder / name)
        if found != expected:
            raise IntegrityError(f"{folder / name}: expected sha256 {expected}, found {found}; {repair}")
    return Sealed(folder, hashlib.sha256(text).hexdigest(), files)


def _content(path: Path) -> tuple[bytes, str]:
    """What is in a file, and its sha256, or in words why there is none."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        return b"", f"none ({error.strerror})"
    return data, hashlib.sha256(data).hexdigest()
