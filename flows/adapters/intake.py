"""How a folder of images comes to data/raw/<name>: whole or not at all, the originals untouched."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pvqae.core.errors import DataError
from pvqae.core.files import write_text
from pvqae.core.layout import ARRIVED

# Copy by default (reflink where the file system can: no space, no time, and independent files). A hard link shares
# the inode: DVC makes it read-only, so the *original* becomes read-only too, and an in-place edit of the original
# would change our version without a trace. So hard links only when asked for.
Link = Literal["copy", "hardlink"]

_JUNK = (".git", ".dvc", "__pycache__", ".DS_Store", "Thumbs.db", "desktop.ini", "._*")
_FICLONE = 0x40049409  # ioctl: share the blocks until one side writes (btrfs, XFS)
_CLONE_REFUSED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)


def _reflink(source: str, target: str) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with Path(source).open("rb") as read, Path(target).open("wb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            if error.errno in _CLONE_REFUSED:
                return False
            raise
    return True


def _copy(source: str, target: str) -> None:
    if not _reflink(source, target):
        shutil.copyfile(source, target)


def _hardlink(source: str, target: str) -> None:
    os.link(os.path.realpath(source), target)


_PLACE: dict[Link, Callable[[str, str], None]] = {"copy": _copy, "hardlink": _hardlink}


def _listing(source: Path) -> dict[str, list[int]]:
    """Return size and time of change of every file, by which, as for rsync, a folder is the same as before."""
    found = {}
    for folder, _, names in os.walk(source, followlinks=True):
        for name in names:
            state = (path := Path(folder, name)).stat()
            found[path.relative_to(source).as_posix()] = [state.st_size, state.st_mtime_ns]
    return found


def _memory(root: Path, name: str) -> Path:
    return root / ".pvqae" / "sources" / f"{name}.json"


def _seen(root: Path, name: str, source: Path) -> bool:
    file = _memory(root, name)
    return file.exists() and json.loads(file.read_text("utf-8")) == [str(source.resolve()), _listing(source)]


def remember(root: Path, name: str, source: Path) -> None:
    """Note what `source` looked like when its version was made."""
    write_text(_memory(root, name), json.dumps([str(source.resolve()), _listing(source)]))


def check(source: Path) -> None:
    """Raise `DataError` for what is no folder with files."""
    if not source.is_dir():
        raise DataError(f"{source}: expected a folder of images, found {'a file' if source.exists() else 'nothing'}")
    if not any(names for _, _, names in os.walk(source, followlinks=True)):
        raise DataError(f"{source} has no files")


def _check(root: Path, name: str, source: Path) -> None:
    target = root / "data" / "raw" / name
    check(source)
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise DataError(f"{source} holds the project's own data/raw/{name}; name the folder of the original images")


def _make_writable(tree: Path) -> None:
    """Make folders writable: copied from a read-only original they could not be moved, nor filled by DVC."""
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o755)


def _keep_arrived(target: Path, incoming: Path) -> None:
    """Keep what arrived later: it is not among the originals, so a mirror of them must not remove it."""
    if (target / ARRIVED).is_dir():
        shutil.copytree(target / ARRIVED, incoming / ARRIVED, copy_function=_PLACE["copy"], dirs_exist_ok=True)


def bring(root: Path, name: str, source: Path, link: Link = "copy", known: bool = False) -> bool:
    """Make data/raw/<name> equal to `source`, additions and removals alike; return False when it already is.

    Only data/raw/<name>/arrived stays: it is no mirror of anything.

    `known`: the dataset has a version, so an unchanged source needs no copy. Raises `DataError`.
    """
    _check(root, name, source)
    target = root / "data" / "raw" / name
    if known and target.is_dir() and _seen(root, name, source):
        return False
    incoming, outgoing = (root / ".pvqae" / side / name for side in ("incoming", "outgoing"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if outgoing.is_dir() and not target.exists():  # killed between the two renames below: what arrived is in there
        outgoing.rename(target)
    for leftover in (incoming, outgoing):  # of a killed run
        _make_writable(leftover)
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, incoming, copy_function=_PLACE[link], ignore=shutil.ignore_patterns(*_JUNK))
    _keep_arrived(target, incoming)
    _make_writable(incoming)
    if target.exists():
        target.rename(outgoing)
    incoming.rename(target)
    shutil.rmtree(outgoing, ignore_errors=True)
    return True
