"""Unpack an archive from elsewhere: plain files only, inside the target only, within limits."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from pvqae.errors import IntegrityError

MAX_FILES = 500_000
MAX_BYTES = 64 * 2**30
BLOCK = 2**20


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    kind: str  # file | folder | other
    open: Callable[[], IO[bytes] | None]


def _of_tar(archive: tarfile.TarFile) -> Iterator[Member]:
    for item in archive:
        kind = "file" if item.isreg() else "folder" if item.isdir() else "other"
        yield Member(item.name, kind, lambda item=item: archive.extractfile(item))  # type: ignore[misc]


def _of_zip(archive: zipfile.ZipFile) -> Iterator[Member]:
    for item in archive.infolist():
        # The upper half is the Unix mode; 0 where the archive was made elsewhere.
        kind = stat.S_IFMT(item.external_attr >> 16)
        name = "folder" if item.is_dir() else "file" if kind in (0, stat.S_IFREG) else "other"
        yield Member(item.filename, name, lambda item=item: archive.open(item))  # type: ignore[misc]


def _target(folder: Path, member: Member) -> Path:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise IntegrityError(f"archive entry {member.name!r} leaves its folder; do not use this archive")
    if member.kind == "other":
        raise IntegrityError(f"archive entry {member.name!r} is a link or device, expected plain files; do not use it")
    return folder / name


def _copy(source: IO[bytes], target: Path, room: int) -> int:
    """Bytes written; what is really there counts, not what the archive claims."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source, target.open("xb") as file:
        while block := source.read(BLOCK):
            written += len(block)
            if written > room:
                raise IntegrityError(f"archive holds more than {MAX_BYTES} bytes; do not use it")
            file.write(block)
    return written


def _members(members: Iterator[Member], folder: Path) -> None:
    room = MAX_BYTES
    for count, member in enumerate(members, start=1):
        if count > MAX_FILES:
            raise IntegrityError(f"archive holds more than {MAX_FILES} entries; do not use it")
        target = _target(folder, member)
        source = member.open() if member.kind == "file" else None
        if source is not None:
            room -= _copy(source, target, room)


def extract(path: Path, folder: Path) -> None:
    """Unpack a zip or tar archive (compressed or not) into `folder`, which appears whole or not at all.

    Raises `IntegrityError` for a path that leaves the folder, a link, a device, a file that occurs twice, too many
    bytes or entries, a damaged archive, or one of another kind.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                _members(_of_zip(zipped), part)
        else:
            with tarfile.open(path) as tarred:
                _members(_of_tar(tarred), part)
        part.replace(folder)
    except FileExistsError as error:
        raise IntegrityError(f"{path.name}: {error.filename} occurs twice; do not use this archive") from None
    except (tarfile.TarError, zipfile.BadZipFile, LZMAError, EOFError, zlib.error, RuntimeError) as error:
        raise IntegrityError(
            f"{path.name}: expected a whole zip or tar archive, found {error}; fetch it again"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
