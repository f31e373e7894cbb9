"""Files that appear whole or not at all, are read only from inside their folder, and are checked by their sha256.

A folder is sealed by `SHA256SUMS`, a single file by its hash in a file next to it.
"""

import csv
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pvqae.core.errors import ConfigError, DataError, IntegrityError, is_full
from pvqae.core.tensors import parse_tensors

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
BACKBONE = "backbone.safetensors"  # of a bundle that leaves its project: the frozen weights
# What breaks a line of a table or a terminal, or is no text at all (a name that is not UTF-8).
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read. Raises `OSError` for what is none: to open a pipe would wait for a writer."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def digest(path: Path) -> str:
    """Return the hex sha256 of a file's bytes. Raises `OSError` for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(name: str) -> str:
    """Return a file's name as text that every table holds: control characters and bytes that are not UTF-8 as \\x..
    codes.
    """
    return _ODD.sub(lambda found: ascii(found[0])[1:-1], name)


def _reason(error: Exception) -> str:
    """Return what is wrong without absolute paths: reports about a dataset are the same on every machine."""
    circle = isinstance(error, RuntimeError)
    return "links in a circle" if circle else getattr(error, "strerror", None) or str(error)


def resolve(root: Path, relative: str) -> Path:
    """Return the file that a POSIX path `relative` to `root` names.

    Raises `DataError` if it is absolute, climbs with `..`, leaves `root` through a link, or can't be a path: a manifest
    may come from elsewhere and must not read other files of this machine.
    """
    parts = PurePosixPath(relative)
    inside = root.resolve()
    try:
        path = (inside / parts).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long; with a zero byte; links in a circle
        raise DataError(f"{shown(relative)[:300]}: expected a path, found {_reason(error)}; correct it") from None
    if parts.is_absolute() or ".." in parts.parts or not path.is_relative_to(inside):
        raise DataError(
            f"{relative}: expected a path inside {root.name}/, found one that leaves it; copy the file to there"
        )
    return path


def read_json(path: Path, repair: str) -> dict[str, Any]:
    """Return the JSON object of a file. Raises as `_parse_json`, also where there is no file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: expected a JSON object, found {error}; {repair}") from None
    return _parse_json(data, path, repair)


def _parse_json(data: bytes, path: Path, repair: str) -> dict[str, Any]:
    """Return the JSON object in the content of the file `path`; NaN and Infinity are no JSON.

    Raises `IntegrityError`, naming the file and how to `repair` it, for anything else.
    """
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: expected a JSON object, found {error}; {repair}") from None
    if not isinstance(found, dict):
        raise IntegrityError(f"{path}: expected a JSON object, found {type(found).__name__}; {repair}")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which is no number")


def make_folder(folder: Path) -> None:
    """Make a folder that a person named. Raises `ConfigError` where it can't be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        if is_full(error):
            raise
        reason = "a file" if isinstance(error, FileExistsError) else _reason(error)
    if reason:
        raise ConfigError(f"{folder}: expected a folder to write to, found: {reason}; name another")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a new folder next to `out`, which takes its place when the block ends without an error.

    Raises `ConfigError` as `make_folder`.
    """
    make_folder(out.parent)
    if out.exists():  # as a file, it would take all the work in vain
        make_folder(out)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
    except BaseException:
        shutil.rmtree(part)
        raise
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a file next to `path` to write, which takes its place when the block ends; makes the folder.

    After an error the part is gone: a full disk needs its room. `shared` is for what several processes may write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if shared:
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            if not _runs(left.name.split(".")[-2].partition("-")[0]):
                left.unlink(missing_ok=True)  # of a process that was killed
    try:
        part.unlink(missing_ok=True)  # what a killed process has left may be a link into DVC's cache by now
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with `\\n` line ends; makes the folder."""
    with whole_file(path) as part:
        part.write_text(text, "utf-8", newline="\n")


def write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write CSV with the columns `names`, UTF-8 with `\\n` line ends; makes the folder."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write safetensors; makes the folder. Several processes may write the same file."""
    from safetensors.torch import save_file  # torch: not for those who write text

    with whole_file(path, shared=True) as part:
        save_file(dict(tensors), part)


def seal(path: Path) -> None:
    """Write the sha256 of a finished file next to it. Several processes may seal the same file."""
    with whole_file(path.with_suffix(".sha256"), shared=True) as part:
        part.write_text(digest(path), "utf-8")


def sealed(path: Path) -> bytes | None:
    """Return the content of a file; None where it is absent, or not what was sealed."""
    sums = path.with_suffix(".sha256")
    try:
        expected, data = sums.read_text("utf-8", errors="replace"), path.read_bytes()
    except OSError:  # absent, or in a folder that this user may not pass
        return None
    return data if expected == hashlib.sha256(data).hexdigest() else None


@dataclass(frozen=True, eq=False)
class Sealed:
    """A folder's files as they were read and checked: what is computed from them is computed from what was checked,
    whatever happens to the files meanwhile.
    """

    folder: Path
    sha256: str  # of SHA256SUMS
    files: Mapping[str, bytes]  # SHA256SUMS included

    def json(self, name: str, repair: str) -> dict[str, Any]:
        """Return the JSON object of a file that is there. Raises `IntegrityError` for anything else."""
        return _parse_json(self.files[name], self.folder / name, repair)

    def tensors(self, name: str) -> "dict[str, Tensor]":
        """Return the tensors of a safetensors file that is there."""
        return parse_tensors(self.files[name])


def seal_folder(folder: Path) -> str:
    """List all files of `folder` in its SHA256SUMS; return the sha256 of that list."""
    names = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    (folder / SUMS).write_text("".join(f"{digest(folder / n)}  {n}\n" for n in names), "utf-8")
    return digest(folder / SUMS)


def read_folder(folder: Path, what: str, repair: str) -> Sealed:
    """Read every file of a sealed folder, once, and check it against SHA256SUMS.

    Raises `IntegrityError` for a missing, foreign or changed file; it says `what` the folder should be and how to
    `repair` it.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise IntegrityError(f"{folder}: expected {what} with {SUMS}, found none; {repair}")
    text = sums.read_bytes()
    if not re.fullmatch(rb"([0-9a-f]{64}  [\w.-]+\n)+", text):
        raise IntegrityError(f"{sums}: expected lines of sha256 and name, found others; {repair}")
    lines = (line.split("  ") for line in text.decode().splitlines())
    listed = {name: sha256 for sha256, name in lines}
    present = {p.name for p in folder.iterdir()} - {SUMS}
    if present != set(listed):
        raise IntegrityError(f"{folder}: expected the files {sorted(listed)}, found {sorted(present)}; {repair}")
    files = {SUMS: text}
    for name, expected in listed.items():
        files[name], found = _content(folder / name)
        if found != expected:
            raise IntegrityError(f"{folder / name}: expected sha256 {expected}, found {found}; {repair}")
    return Sealed(folder, hashlib.sha256(text).hexdigest(), files)


def _content(path: Path) -> tuple[bytes, str]:
    """Return what is in a file, and its sha256, or in words why there is none."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        return b"", f"none ({error.strerror})"
    return data, hashlib.sha256(data).hexdigest()
