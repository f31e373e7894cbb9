"""Where new images arrive: an S3 bucket or a folder, one prefix per class. Read only: nothing there is ever changed."""

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

from pvqae.errors import ConfigError, PvqaeError

PAUSE, LONGEST = 0.5, 20.0  # seconds before another try: of the first, at most
PATIENCE = 60.0  # seconds that a server may be silent
BLOCK = 2**20
MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag of another form (several parts, other encryption) is no md5
JUNK = (".", "Thumbs.db", "desktop.ini")  # beginnings of names of what file managers leave behind


class LandingError(PvqaeError):
    """The landing area can't be listed, or an object did not arrive whole; the next run tries again."""


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
        return hashlib.sha256(f"{self.key}\0{self.etag}\0{self.size}".encode()).hexdigest()


class Landing(Protocol):
    """What the flows need of a landing area: `Folder` and `Bucket` are real ones, `memory.Shelf` the twin."""

    def objects(self) -> Iterator[Object]: ...
    def fetch(self, item: Object, target: Path) -> None: ...


def open_landing(url: str, retries: int = 4) -> Landing:
    """The landing area at s3://bucket/prefix, or in a folder. Raises `ConfigError` for another kind of address."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return Bucket(parts.netloc, parts.path.strip("/"), retries)
    if not url or "://" in url:
        raise ConfigError(f"landing.url: expected s3://bucket/prefix or a folder, found {url!r}; correct params.yaml")
    return Folder(Path(url).expanduser())


def _is_file(key: str) -> bool:
    """False for what stands for a folder and for what file managers leave behind."""
    return bool(key) and not key.endswith("/") and not any(part.startswith(JUNK) for part in key.split("/"))


def retried(work: Callable[[], None], retries: int, pause: float = PAUSE) -> None:
    """Run `work`, again after a `LandingError`; random pauses, so that many readers do not come back at once."""
    for attempt in range(retries + 1):
        try:
            return work()
        except LandingError:
            if attempt == retries:
                raise
            time.sleep(random.uniform(0.5, 1) * min(LONGEST, pause * 2**attempt))
    return None


@dataclass(frozen=True)
class Folder:
    """A folder with the layout of a bucket. Links are not followed: they could lead anywhere on this machine."""

    root: Path

    def objects(self) -> Iterator[Object]:
        """Raises `LandingError` when the folder is not there."""
        if not self.root.is_dir():
            raise LandingError(f"landing.url: expected a folder at {self.root}, found none; make it, or mount its disk")
        for folder, below, names in os.walk(self.root):
            below.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                key = path.relative_to(self.root).as_posix()
                if _is_file(key) and path.is_file() and not path.is_symlink():
                    yield self._object(key)

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
            raise LandingError(f"{item.key}: expected {item.size} bytes, found it changing; the next run tries again")


class Bucket:
    """A prefix of an S3 bucket. Address and keys as boto3 finds them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ..."""

    def __init__(
        self, bucket: str, prefix: str, retries: int = 4, pause: float = PAUSE, patience: float = PATIENCE
    ) -> None:
        import boto3
        from botocore.config import Config

        settings = Config(
            connect_timeout=10,
            read_timeout=patience,
            retries={"mode": "standard", "total_max_attempts": min(3, retries + 1)},  # with jitter; of each request
        )
        session = boto3.Session()
        # boto3 wants some region; a server of one's own has none.
        self._client: Any = session.client("s3", config=settings, region_name=session.region_name or "us-east-1")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._retries, self._pause = retries, pause

    def objects(self) -> Iterator[Object]:
        """Raises `LandingError` when the bucket is not there or does not answer."""
        with _explained(f"s3://{self._bucket}/{self._prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for row in (row for page in pages for row in page.get("Contents", ())):
                key = row["Key"].removeprefix(self._prefix)
                if _is_file(key):
                    yield Object(key, row["ETag"].strip('"'), int(row["Size"]))

    def fetch(self, item: Object, target: Path) -> None:
        """Download an object to `target`, its size and checksums compared; several tries.

        Raises `LandingError` when it does not arrive as it was listed.
        """
        retried(lambda: self._once(item, target), self._retries, self._pause)

    def _once(self, item: Object, target: Path) -> None:
        with _explained(item.key):
            # IfMatch: the object that was listed, or none. botocore itself checks a CRC or SHA that the server keeps.
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + item.key, IfMatch=item.etag)
            sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
            with target.open("wb") as file:
                while (block := found["Body"].read(BLOCK)) and size <= item.size:
                    file.write(block)
                    sha256.update(block)
                    md5.update(block)
                    size += len(block)
        wanted = {"bytes": item.size, "sha256": found.get("Metadata", {}).get("sha256", sha256.hexdigest())}
        if MD5.fullmatch(item.etag) and found.get("ServerSideEncryption", "AES256") == "AES256":
            wanted["md5"] = item.etag
        got = {"bytes": size, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}
        for name, value in wanted.items():
            if got[name] != value:
                raise LandingError(f"{item.key}: expected {name} {value}, found {got[name]}; put the object again")


class _explained:  # noqa: N801 - reads as a word in `with`
    """Errors of boto3 as `LandingError`s that name what was read."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from urllib3.exceptions import HTTPError

        if isinstance(error, BotoCoreError | ClientError | HTTPClientError | HTTPError | ConnectionError):
            raise LandingError(
                f"{self._what}: {error}; check the address, the keys and the network, then run again"
            ) from None
