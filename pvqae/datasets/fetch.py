"""Download a public dataset when the user asks: the verb `pvqae data fetch NAME`. Nothing else here uses a network.

A download goes on where a broken-off attempt stopped. An archive from elsewhere is unpacked as plain files only, inside
the target only, within limits.
"""

import json
import math
import os
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

import requests

from pvqae.core.errors import ConfigError, DataError, IntegrityError
from pvqae.core.files import digest, make_folder, write_text
from pvqae.core.progress import track
from pvqae.datasets import sources

_CHUNK = 2**20  # bytes
_MAX_BYTES = 32 * 2**30  # of an archive
_MAX_FILES = 500_000
_MAX_UNPACKED = 64 * 2**30  # bytes
_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the next attempt
_BROKEN_OFF = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_TIMEOUT = (10.0, 60.0)  # seconds: to connect, between two pieces
_Member = tuple[str, str, Callable[[], IO[bytes] | None]]  # of an archive: name, file | folder | other, its content


@dataclass(frozen=True)
class _Archive:
    """Where a dataset is published, and under what terms. `sha256` None: recorded when it is first fetched."""

    licence: str
    url: str
    sha256: str | None


ARCHIVES = {
    "mvtec": _Archive(
        "MVTec AD, Copyright MVTec Software GmbH: CC BY-NC-SA 4.0, no commercial use. "
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f282/download/420938113-1629952094/"
        "mvtec_anomaly_detection.tar.xz",
        "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
    ),
    "btad": _Archive(
        "beanTech Anomaly Detection (Mishra et al. 2021, VT-ADL): see the terms of its authors and cite them. "
        "https://github.com/pankajmishra000/VT-ADL",
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
    ),
    "mtsd": _Archive(
        "Magnetic Tile Surface Defects (Huang et al. 2018): no licence is stated, the authors ask for a citation. "
        "https://github.com/abin24/Magnetic-tile-defect-datasets.",
        "https://github.com/abin24/Magnetic-tile-defect-datasets./archive/refs/heads/master.zip",
        None,  # made by GitHub on request
    ),
    "visa": _Archive(
        "VisA (Zou et al. 2022, SPot-the-Difference), Amazon: CC BY 4.0. https://github.com/amazon-science/spot-diff",
        "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
    ),
    "loco": _Archive(
        "MVTec LOCO AD, Copyright MVTec Software GmbH: CC BY-NC-SA 4.0, no commercial use. "
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        "https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/430647091-1646842701/"
        "mvtec_loco_anomaly_detection.tar.xz",
        "9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
    ),
    "mvtec_ad_2": _Archive(
        "MVTec AD 2, Copyright MVTec Software GmbH: CC BY-NC-SA 4.0, no commercial use; 33 GB. "
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        "https://www.mydrive.ch/shares/150997/701c90d3aea6588f404936e32a674602/download/466712769-1743429042/"
        "mvtec_ad_2.tar.gz",
        "c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
    ),
    "mvtec_3d": _Archive(
        "MVTec 3D-AD, Copyright MVTec Software GmbH: CC BY-NC-SA 4.0, no commercial use. "
        "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
        "https://www.mydrive.ch/shares/45920/dd1eb345346df066c63b5c95676b961b/download/428824485-1643285832/"
        "mvtec_3d_anomaly_detection.tar.xz",
        None,
    ),
    "kolektor": _Archive(
        "KolektorSDD (Tabernik et al. 2019), Kolektor Group and ViCoS: CC BY-NC-SA 4.0, no commercial use. "
        "https://www.vicos.si/resources/kolektorsdd/",
        "https://data.vicos.si/datasets/KSDD/KolektorSDD.zip",
        "65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
    ),
    "kolektor2": _Archive(
        "KolektorSDD2 (Božič et al. 2021), Kolektor Group and ViCoS: CC BY-NC-SA 4.0, no commercial use. "
        "https://www.vicos.si/resources/kolektorsdd2/",
        "https://data.vicos.si/datasets/KSDD/KolektorSDD2.zip",
        None,
    ),
}
# Published, but not as one archive at an address that anyone may open.
ELSEWHERE = {
    "mpdd": "download it from its authors, https://github.com/stepanje/MPDD",
    "dagm": "download its classes, https://hci.iwr.uni-heidelberg.de/content/"
    "weakly-supervised-learning-industrial-optical-inspection",
    "real_iad": "ask its authors for access, https://huggingface.co/datasets/Real-IAD/Real-IAD",
}


def fetch(
    name: str,
    out: Path,
    record: Path,
    url: str | None = None,
    sha256: str | None = None,
    accept_licence: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> Path:
    """Download dataset `name` to the folder `out` and return it; the archive's hash is kept in the JSON file `record`,
    and told by `say` where nothing was there to check it against.

    Raises `ConfigError` for an unknown name or a licence that was not accepted, `DataError` when `out` exists, the
    download fails or holds another layout, `IntegrityError` for another hash than before or an unsafe archive.
    """
    if name in ELSEWHERE:
        raise ConfigError(f"{name} has no archive to fetch: {ELSEWHERE[name]}; then use it with data.source={name}")
    if name not in ARCHIVES:
        raise ConfigError(f"expected one of {', '.join(ARCHIVES)} to fetch, found {name}")
    archive = ARCHIVES[name]
    if not accept_licence:
        raise ConfigError(f"{archive.licence}\nTo fetch it on these terms, repeat the command with --accept-licence")
    if out.exists():
        raise DataError(f"{out}: expected no such folder yet; remove it to fetch {name} again")
    url = url or archive.url
    expected = _expected(archive, url, sha256, record)
    file = out.with_name(f".{out.name}.archive")
    make_folder(out.parent)
    download(url, file)
    found = digest(file)
    if expected not in (None, found):
        file.unlink()
        raise IntegrityError(
            f"{url}: expected sha256 {expected}, found {found}; the file was removed, ask its publisher"
        )
    if expected is None:
        say(f"{url}: sha256 {found}, unverified: nobody has told which it should be; from now on it must stay the same")
    _unpack(name, file, out)
    write_text(record, json.dumps(_recorded(record) | {url: found}, indent=2, sort_keys=True) + "\n")
    file.unlink()
    return out


def _recorded(record: Path) -> dict[str, str]:
    """Return the sha256 of what was fetched before, by address."""
    return dict(json.loads(record.read_text("utf-8"))) if record.exists() else {}


def _expected(archive: _Archive, url: str, sha256: str | None, record: Path) -> str | None:
    """Return the hash that the archive must have: the user's, ours, or that of the first time; all of them agree."""
    built_in = archive.sha256 if url == archive.url else None
    known = {h.lower() for h in (sha256, built_in, _recorded(record).get(url)) if h}
    if len(known) > 1:
        raise IntegrityError(
            f"{url}: --sha256, the built-in hash and {record} contradict each other: {', '.join(sorted(known))}; "
            f"if the archive was replaced on purpose, remove its line from {record}"
        )
    return known.pop() if known else None


def _unpack(name: str, file: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        _extract(file, Path(place) / "all")
        os.replace(_dataset_root(name, Path(place) / "all"), out)


def _dataset_root(name: str, folder: Path) -> Path:
    """Return the folder that has the layout: archives often wrap it in one of their own. Raises `DataError` if none
    has.
    """
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if sources.SOURCES[name].parts(place) and (place == folder or not sources.SOURCES[name].parts(folder)):
            return place
    sources.categories(name, folder)
    return folder


def download(url: str, path: Path, repair: str = "give another address with --url") -> None:
    """Fetch `url` to `path`. What arrived before a break is kept in `path`.part for the next call.

    Raises `DataError` when the server refuses, which `repair` tells what to do about, cannot be reached in several
    attempts, or sends too much.
    """
    part, note = (path.with_name(path.name + end) for end in (".part", ".part.version"))
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _attempt(url, part, note)
            break
        except _BROKEN_OFF as error:
            if attempt == _ATTEMPTS:
                raise DataError(f"{url}: {error}; what arrived is kept, run the same command to go on") from None
            time.sleep(_PAUSE * attempt)
        except requests.RequestException as error:
            raise DataError(f"{url}: {error}; {repair}") from None
    part.replace(path)
    note.unlink()


def _attempt(url: str, part: Path, note: Path) -> None:
    """Append what is missing to `part`; `note` says of which version of which address it is the beginning."""
    known, _, version = note.read_text("utf-8").partition("\n") if note.exists() else ("", "", "")
    have = part.stat().st_size if part.exists() and known == url else 0
    with _ask(url, have, version) as answer:
        done = have if answer.status_code == 206 else 0
        note.write_text(f"{url}\n{_validator(answer)}", "utf-8")
        with part.open("ab" if done else "wb") as file:
            for piece in _pieces(answer, done):
                file.write(piece)
                if file.tell() > _MAX_BYTES:
                    raise DataError(f"{url}: expected at most {_MAX_BYTES} bytes, found more")


def _ask(url: str, have: int, version: str) -> requests.Response:
    """Ask for the rest after `have` bytes; a server whose file has changed since sends all of it."""
    headers = {"Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    answer = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
    # 416: the file is complete or has become shorter. A part other than the one asked for is no use either.
    other = answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if have and (answer.status_code == 416 or other):
        answer.close()
        return _ask(url, 0, "")
    if answer.status_code >= 400:
        answer.close()
    if answer.status_code >= 500:
        raise requests.ConnectionError(f"the server says {answer.status_code} {answer.reason}")
    answer.raise_for_status()
    return answer


def _validator(answer: requests.Response) -> str:
    """Return what the server says to recognise this very version of the file by; "" if nothing reliable."""
    etag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _pieces(answer: requests.Response, done: int) -> Iterator[bytes]:
    total = done + int(answer.headers.get("Content-Length", 0))
    if total > _MAX_BYTES:
        raise DataError(f"{answer.url}: expected at most {_MAX_BYTES} bytes, found {total}")
    pieces = answer.iter_content(_CHUNK)
    yield from track(pieces, "downloading, MiB", math.ceil(total / _CHUNK), start=done // _CHUNK)


def _extract(path: Path, folder: Path) -> None:
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
                _write_members(_of_zip(zipped), part)
        else:
            with tarfile.open(path) as tarred:
                _write_members(_of_tar(tarred), part)
        part.replace(folder)
    except FileExistsError as error:
        raise IntegrityError(f"{path.name}: {error.filename} occurs twice; do not use this archive") from None
    except (tarfile.TarError, zipfile.BadZipFile, LZMAError, EOFError, zlib.error, RuntimeError) as error:
        raise IntegrityError(
            f"{path.name}: expected a whole zip or tar archive, found {error}; fetch it again"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Member]:
    for item in archive:
        kind = "file" if item.isreg() else "folder" if item.isdir() else "other"
        yield item.name, kind, lambda item=item: archive.extractfile(item)  # type: ignore[misc]


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for item in archive.infolist():
        # The upper half is the Unix mode; 0 where the archive was made elsewhere.
        mode = stat.S_IFMT(item.external_attr >> 16)
        kind = "folder" if item.is_dir() else "file" if mode in (0, stat.S_IFREG) else "other"
        yield item.filename, kind, lambda item=item: archive.open(item)  # type: ignore[misc]


def _write_members(members: Iterator[_Member], folder: Path) -> None:
    room = _MAX_UNPACKED
    for count, (name, kind, content) in enumerate(members, start=1):
        if count > _MAX_FILES:
            raise IntegrityError(f"archive holds more than {_MAX_FILES} entries; do not use it")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise IntegrityError(f"archive entry {name!r} leaves its folder; do not use this archive")
        if kind == "other":
            raise IntegrityError(f"archive entry {name!r} is a link or device, expected plain files; do not use it")
        source = content() if kind == "file" else None
        if source is not None:
            room -= _copy(source, folder / path, room)


def _copy(source: IO[bytes], target: Path, room: int) -> int:
    """Return the bytes written; what is really there counts, not what the archive claims."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source, target.open("xb") as file:
        while block := source.read(_CHUNK):
            written += len(block)
            if written > room:
                raise IntegrityError(f"archive holds more than {_MAX_UNPACKED} bytes; do not use it")
            file.write(block)
    return written
