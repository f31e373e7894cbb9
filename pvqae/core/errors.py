"""The exceptions of this project: each says what was expected, what was found and what repairs it.

Full-disk errors of any library are recognised here, and the disk is named.
"""

import errno
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


class PvqaeError(Exception):
    """Base of all errors that a user can repair; the command line prints it without a traceback."""


class ConfigError(PvqaeError):
    """params.yaml or a command-line override is not what the models in `pvqae.core.config` describe."""


class DataError(PvqaeError):
    """A dataset, a manifest or an image is not usable as it is."""


class ValidationFailed(DataError):  # noqa: N818 - it names an outcome, not a fault of the code
    """A data expectation failed; nothing was trained."""


class IntegrityError(PvqaeError):
    """A file does not have the hash that was recorded for it, or lacks one."""


class FormatError(IntegrityError):
    """A file is whole, but of a format that this code can't read; `older`: no longer, else not yet."""

    def __init__(self, text: str, older: bool = False) -> None:
        super().__init__(text)
        self.older = older


class CalibrationError(PvqaeError):
    """Too few normals, or not the right ones, to set a threshold."""


class ParityError(PvqaeError):
    """An exported detector does not give the scores of its bundle; nothing was written."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
TEXTS = ("No space left on device", "Disk quota exceeded", "database or disk is full")  # of other programs
_LEAST = 16 * 2**20  # bytes: with less free a disk is named as full; what failed has removed its half file by now


def is_full(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, tells of a full disk."""
    return any(
        (isinstance(one, OSError) and one.errno in _FULL) or any(text in str(one) for text in TEXTS)
        for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _full_places(places: Iterable[Path]) -> list[str]:
    """Return which of the disks of `places` have next to no room, with the room they have."""
    found: dict[int, str] = {}
    for place in places:
        free = shutil.disk_usage(place).free
        if free < _LEAST:
            found.setdefault(place.stat().st_dev, f"{place} ({free / 2**20:.1f} MB free)")
    return list(found.values())


def words(error: BaseException | None = None) -> str:
    """Say what a person should do after `error` where a disk is full, "" where none is: of this folder or of temporary
    files, or whichever the error means.
    """
    places = _full_places((Path.cwd(), Path(tempfile.gettempdir())))
    if not places and not (error and is_full(error)):
        return ""
    which = " and ".join(places) or f"of {Path.cwd()}, of temporary files ({tempfile.gettempdir()}), or of a server"
    return f"a disk is full: {which}; free some space, then run the same command again: it goes on from where it was"
