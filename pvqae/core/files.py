"""Outputs appear whole or not at all: written beside their place, then renamed. What is read is a file, and inside its
folder."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pvqae.core.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from torch import Tensor


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read. Raises `OSError` for what is none: to open a pipe would wait for who writes into it."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def digest(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises `OSError` for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What breaks a line of a table or a terminal, or is no text at all (a name that is not UTF-8).
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> str:
    """A file's name as text that every table holds: control characters and bytes that are not UTF-8 as \\x.. codes."""
    return _ODD.sub(lambda found: ascii(found[0])[1:-1], name)


def _short(error: Exception) -> str:
    """Without absolute paths: what is told of a dataset is the same on every machine."""
    circle = isinstance(error, RuntimeError)
    return "links in a circle" if circle else getattr(error, "strerror", None) or str(error)


def resolve(root: Path, relative: str) -> Path:
    """The file that a POSIX path `relative` to `root` names.

    Raises `DataError` if it is absolute, climbs with `..`, leaves `root` through a link, or can't be a path: a manifest
    may come from elsewhere and must not read other files of this machine.
    """
    parts = PurePosixPath(relative)
    inside = root.resolve()
    try:
        path = (inside / parts).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long; with a zero byte; links in a circle
        raise DataError(f"{shown(relative)[:300]}: expected a path, found {_short(error)}; correct it") from None
    if parts.is_absolute() or ".." in parts.parts or not path.is_relative_to(inside):
        raise DataError(
            f"{relative}: expected a path inside {root.name}/, found one that leaves it; copy the file to there"
        )
    return path


def read_json(path: Path, repair: str) -> dict[str, Any]:
    """The JSON object of a file. Raises as `parse_json`, also where there is no file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: expected a JSON object, found {error}; {repair}") from None
    return parse_json(data, path, repair)


def parse_json(data: bytes, path: Path, repair: str) -> dict[str, Any]:
    """The JSON object in the content of a file; NaN and Infinity are no JSON. Raises `IntegrityError`, naming it, for
    anything else; `repair` says what helps."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: expected a JSON object, found {error}; {repair}") from None
    if not isinstance(found, dict):
        raise IntegrityError(f"{path}: expected a JSON object, found {type(found).__name__}; {repair}")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which is no number")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends without an error."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part)
        raise
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)


def checksum(tensors: "Mapping[str, Tensor]", *texts: str) -> str:
    """Hex sha256 of tensors (on the processor) by name, and of texts: safetensors files have none of their own."""
    total = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        total.update(f"{name}{x.dtype}{tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes())
    total.update("".join(texts).encode())
    return total.hexdigest()


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file by value. Mapped into memory, as `load_file` gives them, they would change
    with the file, and a file cut short would end the process."""
    return parse_tensors(path.read_bytes())


def parse_tensors(data: bytes) -> "dict[str, Tensor]":
    """The tensors in the content of a safetensors file."""
    from safetensors.torch import load  # torch: not for those who read text

    return load(data)


def parse_notes(data: bytes) -> dict[str, str]:
    """The texts that were written with the tensors in the content of a safetensors file."""
    notes: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    return notes


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write safetensors; makes the folder. Several processes may write the same file."""
    from safetensors.torch import save_file  # torch: not for those who write text

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        if not _running(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)  # of a process that was killed
    with _placed(path.with_name(f"{path.name}.{os.getpid()}.part"), path) as part:
        save_file(dict(tensors), part)


def _running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with `\\n` line ends; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _placed(path.with_name(path.name + ".part"), path) as part:
        part.write_text(text, "utf-8", newline="\n")


def seal(path: Path) -> None:
    """Write the sha256 of a finished file beside it. Several processes may seal the same file."""
    sums = path.with_suffix(".sha256")
    with _placed(sums.with_name(f"{sums.name}.{os.getpid()}.part"), sums) as part:
        part.write_text(hashlib.sha256(path.read_bytes()).hexdigest(), "utf-8")


def sealed(path: Path) -> bytes | None:
    """The content of a file; None where it is not there, or not what was sealed."""
    sums = path.with_suffix(".sha256")
    try:
        expected, data = sums.read_text("utf-8", errors="replace"), path.read_bytes()
    except OSError:  # not there, or in a folder that this user may not pass
        return None
    return data if expected == hashlib.sha256(data).hexdigest() else None


def is_sealed(path: Path) -> bool:
    """Whether a file is there and is what was sealed."""
    return sealed(path) is not None


@contextmanager
def _placed(part: Path, path: Path) -> Iterator[Path]:
    """`part` takes the place of `path` when the block ends, and is gone after an error: a full disk needs its room."""
    try:
        part.unlink(missing_ok=True)  # what a killed process has left may be a link into DVC's cache by now
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
