"""Download one file, going on where a broken-off attempt stopped."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from pvqae.errors import DataError
from pvqae.progress import track

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
