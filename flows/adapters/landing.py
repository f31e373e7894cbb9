"""Where new images arrive: an S3 bucket or a folder, one prefix per class. Read only: nothing there is ever changed."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pvqae.core.errors import ConfigError, PvqaeError

_PAUSE, _LONGEST = 0.5, 20.0  # seconds before another try: of the first, at most
_PATIENCE = 60.0  # seconds that a server may be silent
_BLOCK = 2**20
_MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag of another form (several parts, other encryption) is no md5
_JUNK = (".", "Thumbs.db", "desktop.ini")  # beginnings of names of what file managers leave behind


class LandingError(PvqaeError):
    """The landing area can't be listed, or an object did not arrive whole; the next run tries again."""


class _Refused(LandingError):  # noqa: N818 - what the server did, no fault of ours
    """An object that another try a second later would not bring either; the next run tries again."""


@dataclass(frozen=True, order=True)
class Object:
    """One version of one file of the landing area: a new content has another `etag`, so it is another object.

    `key` is the POSIX path below the landing area, CLASS/...; `size` in bytes.
    """

    key: str
    etag: str
    size: int

    @property
    def id(self) -> str:
        """A name of this version of the file, 64 hex digits."""
        text = f"{self.key}\0{self.etag}\0{self.size}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()  # a file's name may be no text


class Landing(Protocol):
    """What the flows need of a landing area: `Folder`, `Bucket`, or `fakes.FakeLanding` in tests."""

    def objects(self) -> Iterator[Object]: ...
    def fetch(self, item: Object, target: Path) -> None: ...


def listed(area: Landing) -> tuple[list[Object], tuple[str, ...]]:
    """Return what of `area` can be listed, and why the rest can't. Raises `LandingError` where nothing can."""
    found: list[Object] = []
    try:
        found.extend(area.objects())  # keeps what came before an error
    except LandingError as error:
        if not found:
            raise
        return found, (str(error),)
    return found, ()


def open_landing(url: str, retries: int = 4) -> Landing:
    """Return the landing area at s3://bucket/prefix, or in a folder.

    Raises `ConfigError` for another kind of address.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return Bucket(parts.netloc, parts.path.strip("/"), retries)
    if not url or "://" in url:
        raise ConfigError(f"landing.url: expected s3://bucket/prefix or a folder, found {url!r}; correct params.yaml")
    return Folder(Path(url).expanduser())


def _is_file(key: str) -> bool:
    """Tell files from what stands for a folder and for what file managers leave behind."""
    return bool(key) and not key.endswith("/") and not any(part.startswith(_JUNK) for part in key.split("/"))


def _retried(work: Callable[[], None], retries: int, pause: float = _PAUSE) -> None:
    """Run `work`, again after a `LandingError` that is no `_Refused`; random pauses spread many readers in time."""
    for attempt in range(retries + 1):
        try:
            return work()
        except LandingError as error:
            if attempt == retries or isinstance(error, _Refused):
                raise
            time.sleep(random.uniform(0.5, 1) * min(_LONGEST, pause * 2**attempt))
    return None


@dataclass(frozen=True)
class Folder:
    """A folder with the layout of a bucket. Links are not followed: they could lead anywhere on this machine."""

    root: Path

    def objects(self) -> Iterator[Object]:
        """Yield what is there.

        Raises `LandingError` without the folder, or, at the end, for folders that can't be listed.
        """
        if not self.root.is_dir():
            raise LandingError(f"landing.url: there is no folder {self.root}; make it, or mount its disk")
        closed: list[OSError] = []
        for folder, below, names in os.walk(self.root, onerror=closed.append):
            below.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                key = path.relative_to(self.root).as_posix()
                with contextlib.suppress(OSError):  # gone since the folder was listed
                    if _is_file(key) and path.is_file() and not path.is_symlink():
                        yield self._object(key)
        if closed:
            said = ", ".join(f"{error.filename}: {error.strerror}" for error in closed)
            raise LandingError(f"landing.url: folders that can't be listed: {said}; let this user read them")

    def _object(self, key: str) -> Object:
        state = (self.root / key).stat()
        return Object(key, str(state.st_mtime_ns), state.st_size)

    def fetch(self, item: Object, target: Path) -> None:
        """Copy an object whole to `target`. Raises `LandingError` when it changed or went meanwhile."""
        try:
            shutil.copyfile(self.root / item.key, target, follow_symlinks=False)
            same = self._object(item.key) == item and target.stat().st_size == item.size
        except OSError as error:
            raise LandingError(f"{item.key}: {error.strerror}; the next run tries again") from None
        if not same:  # still being written: its last state is another object
            raise LandingError(f"{item.key} changed while it was read; the next run tries again")


def client(what: str, attempts: int = 3, patience: float = _PATIENCE) -> Any:
    """Return boto3's client, address and keys as boto3 finds them. Raises `LandingError`, naming `what`, without any.

    `attempts` of each request, with jitter; `patience` in seconds, of silence.
    """
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=10, read_timeout=patience, retries={"mode": "standard", "total_max_attempts": attempts}
    )
    with explained(what):  # a profile that is none
        session = boto3.Session()
        # boto3 wants some region; a server of one's own has none.
        return session.client("s3", config=settings, region_name=session.region_name or "us-east-1")


class Bucket:
    """A prefix of an S3 bucket. Address and keys as boto3 finds them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ..."""

    def __init__(
        self, bucket: str, prefix: str, retries: int = 4, pause: float = _PAUSE, patience: float = _PATIENCE
    ) -> None:
        self._client = client(f"s3://{bucket}", min(3, retries + 1), patience)
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._retries, self._pause = retries, pause

    def objects(self) -> Iterator[Object]:
        """Yield what is there. Raises `LandingError` when the bucket is not there or does not answer."""
        with explained(f"s3://{self._bucket}/{self._prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for row in (row for page in pages for row in page.get("Contents", ())):
                key = row["Key"].removeprefix(self._prefix)
                if _is_file(key):
                    yield Object(key, row["ETag"].strip('"'), int(row["Size"]))

    def fetch(self, item: Object, target: Path) -> None:
        """Download an object to `target`, its size and checksums compared; several tries.

        Raises `LandingError` when it does not arrive as it was listed.
        """
        _retried(lambda: self._once(item, target), self._retries, self._pause)

    def _once(self, item: Object, target: Path) -> None:
        with explained(item.key):
            # IfMatch: the object that was listed, or none. botocore itself checks a CRC or SHA that the server keeps.
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + item.key, IfMatch=item.etag)
            sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
            with target.open("wb") as file:
                while (block := found["Body"].read(_BLOCK)) and size <= item.size:
                    file.write(block)
                    sha256.update(block)
                    md5.update(block)
                    size += len(block)
        wanted: dict[str, object] = {"bytes": item.size}
        if _MD5.fullmatch(item.etag) and found.get("ServerSideEncryption", "AES256") == "AES256":
            wanted["md5"] = item.etag
        wanted["sha256"] = found.get("Metadata", {}).get("sha256", sha256.hexdigest())
        got = {"bytes": size, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}
        if wrong := next((name for name in wanted if got[name] != wanted[name]), ""):
            text = f"{item.key}: expected {wrong} {wanted[wrong]}, found {got[wrong]}; put the object again"
            # It came as the server has it, so the uploader's own sum is wrong.
            raise (_Refused if wrong == "sha256" and "md5" in wanted else LandingError)(text)


class explained:  # noqa: N801 - reads as a word in `with`
    """Errors of boto3 as `LandingError`s that name what was read."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from urllib3.exceptions import HTTPError

        if isinstance(error, ClientError) and self._refused(error):
            repair = "check that it can be read: keys, permissions, storage class"
            raise _Refused(f"{self._what}: {error}; {repair}") from None
        if isinstance(error, Boto3Error | BotoCoreError | ClientError | HTTPClientError | HTTPError | ConnectionError):
            raise LandingError(
                f"{self._what}: {error}; check the address, the keys and the network, then run again"
            ) from None

    @staticmethod
    def _refused(error: Any) -> bool:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        return 400 <= status < 500 and status not in (408, 429)
