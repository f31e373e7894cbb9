"""Files that several processes share: locks of the operating system, and append-only files of one JSON object a line.

A lock is gone with the last process that holds it, however it ends. A line without its end was cut off by a crash and
counts for nothing.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

_POLL = 0.2  # seconds
_T = TypeVar("_T")


@contextmanager
def held(file: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Hold `file`'s lock; yields its descriptor, for children to inherit: the lock then lasts as long as any of them.

    `waiting` is called once when another process holds it.
    """
    with _opened(file) as descriptor:
        _acquire(descriptor, waiting)
        yield descriptor


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # not LOCK_UN, which would also unlock it for a child that still works


def _acquire(descriptor: int, waiting: Callable[[], object]) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                waiting()
                told = True
            time.sleep(_POLL)  # a blocking flock in a thread could not be interrupted


@contextmanager
def tried(file: Path) -> Iterator[bool]:
    """Hold `file`'s lock if nobody else does; yields whether it is held now."""
    with _opened(file) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


def append(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Append lines, durably: the disk has them when this returns, and a new file's entry. One writer at a time."""
    _mend(path)
    with path.open("ab") as file:
        file.write(b"".join(json.dumps(value).encode() + b"\n" for value in values))
        file.flush()
        os.fsync(file.fileno())


def _mend(path: Path) -> None:
    """Make the file end with a whole line. Only the writer may: to others a half-done append looks the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    with path.open("rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            whole, end, last = file.read().rpartition(b"\n")
            if _is_cut(last):
                file.truncate(len(whole) + len(end))
            else:  # an editor leaves out the end of the last line
                file.write(b"\n")


def _is_cut(line: bytes) -> bool:
    """Tell whether a line is the beginning of an object."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(b"{")
    return False


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().rpartition(b"\n")[0].splitlines(), start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            yield number, found
        else:
            _tell(path, number, "not a JSON object")


def records(path: Path, kind: type[_T]) -> Iterator[_T]:
    """Yield the whole lines as values of the type `kind`, oldest first; none without a file.

    Lines that are none, of a disk that was full, for example, are left out with a message; so are unknown keys.
    """
    adapter = TypeAdapter(kind)
    for number, values in _numbered(path):
        try:
            yield adapter.validate_python(values)
        except ValidationError as error:
            _tell(path, number, f"no {kind.__name__}: {error.errors()[0]['msg']}")


@lru_cache(maxsize=1000)
def _tell(path: Path, number: int, what: str) -> None:
    """Print a message once a process: the files are read again and again."""
    print(f"{path}, line {number}: {what[:200]}; left out, the other lines hold", file=sys.stderr, flush=True)
