"""Download one file, going on where a broken-off attempt stopped.

Unpack an archive from elsewhere: plain files only, inside the target only, within limits.
"""

import math
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

import requests

from pvqae.core.errors import DataError, IntegrityError
from pvqae.core.progress import track

CHUNK = 2**20
MAX_BYTES = 32 * 2**30
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the next attempt
BROKEN_OFF = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
TIMEOUT = (10.0, 60.0)  # seconds: to connect, between two pieces


def _validator(answer: requests.Response) -> str:
    """What the server says to recognise this very version of the file by; "" if nothing reliable."""
    etag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _ask(url: str, have: int, version: str) -> requests.Response:
    """Ask for the rest after `have` bytes; a server whose file has changed since sends all of it."""
    headers = {"Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    answer = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    # 416: the file is complete or has become shorter. A part other than the one asked for is no use either.
    other = answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if have and (answer.status_code == 416 or other):
        answer.close()
        return _ask(url, 0, "")
    if answer.status_code >= 500:
        raise requests.ConnectionError(f"the server says {answer.status_code} {answer.reason}")
    answer.raise_for_status()
    return answer


def _pieces(answer: requests.Response, done: int) -> Iterator[bytes]:
    total = done + int(answer.headers.get("Content-Length", 0))
    if total > MAX_BYTES:
        raise DataError(f"{answer.url}: expected at most {MAX_BYTES} bytes, found {total}")
    pieces = answer.iter_content(CHUNK)
    yield from track(pieces, "downloading, MiB", math.ceil(total / CHUNK), start=done // CHUNK)


def _attempt(url: str, part: Path, note: Path) -> None:
    """`note` says which version of which address `part` is the beginning of."""
    known, _, version = note.read_text("utf-8").partition("\n") if note.exists() else ("", "", "")
    have = part.stat().st_size if part.exists() and known == url else 0
    with _ask(url, have, version) as answer:
        done = have if answer.status_code == 206 else 0
        note.write_text(f"{url}\n{_validator(answer)}", "utf-8")
        with part.open("ab" if done else "wb") as file:
            for piece in _pieces(answer, done):
                file.write(piece)
                if file.tell() > MAX_BYTES:
                    raise DataError(f"{url}: expected at most {MAX_BYTES} bytes, found more")


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path`. What arrived before a break is kept in `path`.part for the next call.

    Raises `DataError` when the server refuses, cannot be reached in several attempts, or sends too much.
    """
    part, note = (path.with_name(path.name + end) for end in (".part", ".part.version"))
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, part, note)
            break
        except BROKEN_OFF as error:
            if attempt == ATTEMPTS:
                raise DataError(f"{url}: {error}; what arrived is kept, run the same command to go on") from None
            time.sleep(PAUSE * attempt)
        except requests.RequestException as error:
            raise DataError(f"{url}: {error}; give another address with --url") from None
    part.replace(path)
    note.unlink()


MAX_FILES = 500_000
MAX_UNPACKED = 64 * 2**30
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
                raise IntegrityError(f"archive holds more than {MAX_UNPACKED} bytes; do not use it")
            file.write(block)
    return written


def _members(members: Iterator[Member], folder: Path) -> None:
    room = MAX_UNPACKED
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
