"""The images of the review: found again by what the queue knows of them, and drawn small, once each."""

import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.adapters import landing
from flows.adapters.landing import Object
from flows.review.review_queues import Item
from pvqae.core.errors import DataError
from pvqae.core.files import digest
from pvqae.report import pictures
from pvqae.samples import images
from pvqae.serving import batch

if TYPE_CHECKING:
    from pvqae.inference.bundle import Detector

SIDE = 1024  # longest side of a shown picture, pixels
# The version and the detector of a class's champion; None where it has none.
Champion = Callable[[str], "tuple[str, Detector] | None"]


@contextmanager
def file_of(item: Item) -> Iterator[Path]:
    """The image's file, fetched if it lies in a bucket. Raises `DataError` when it is gone or holds something else."""
    with tempfile.TemporaryDirectory(prefix="pvqae-") as scratch:
        file = _fetched(item, Path(scratch)) if "|" in item.place and "://" in item.place else Path(item.place)
        if not file.is_file() or digest(file) != item.sha256:
            raise DataError(
                f"{item.path}: expected the image with sha256 {item.sha256[:12]}, found it gone or changed; "
                "score its source again, or leave it"
            )
        yield file


def _fetched(item: Item, scratch: Path) -> Path:
    """What the journals of the scores' folder say a bucket calls this content."""
    folder, _, url = item.place.partition("|")
    for journal in sorted(Path(folder).glob(".journal-*.sqlite")):
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as base:
            rows = base.execute("SELECT identity FROM known WHERE sha256 = ?", (item.sha256,)).fetchall()
        for etag, size, key in (row[0].split(" ", 2) for row in rows):
            if url.endswith(f"/{key}"):
                target = scratch / ("image" + Path(key).suffix.lower())
                area = landing.open_landing(url.removesuffix(f"/{key}"))
                area.fetch(Object(key, etag, int(size)), target)
                return target
    raise DataError(f"{item.path}: expected a note of it below {folder}, found none; score its source again")


class Album:
    """Small pictures and heatmaps below the folder `cache`, drawn when they are first asked for, one at a time."""

    def __init__(self, cache: Path, champion: Champion, bits: images.Bits = "auto") -> None:
        self._cache, self._champion, self._bits = cache, champion, bits
        self._drawing = threading.Lock()  # a large image takes a gigabyte while it is decoded

    def picture(self, item: Item) -> Path:
        """A WebP of the pixels alone. Raises `DataError` for an image that can't be read."""
        file = self._cache / f"{item.sha256}.webp"
        with self._drawing:
            if not file.is_file():
                with file_of(item) as source:
                    pixels = np.rint(images.read(source, bits=self._bits) * 255).astype(np.uint8)
                _keep(file, pictures.webp(pictures.thumbnail(pixels, SIDE)))
        return file

    def heatmap(self, item: Item) -> Path | None:
        """The champion's map over the picture, a WebP; None where the class has no champion. Raises as `picture`."""
        with self._drawing:
            found = self._champion(item.category)
            if not found:
                return None
            version, detector = found
            file = self._cache / f"{item.sha256}-{item.category}-{version}-{detector.sha256[:16]}.webp"
            if not file.is_file():
                with file_of(item) as source:
                    _keep(file, pictures.webp(batch.heatmap(detector, detector.score(source))))
        return file


def _keep(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(content)
    os.replace(part, file)
