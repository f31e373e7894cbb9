"""Locks of the operating system: gone with the last process that holds them, however it ends."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL = 0.2  # seconds


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
