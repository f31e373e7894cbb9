"""The images to review: which ones, in which order, their files, and thumbnails of them."""

import csv
import heapq
import json
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.adapters import landing
from flows.adapters.landing import Object
from flows.core import lineage, shared_files
from flows.retrain import gate_normals
from flows.retrain.admission import file_of
from flows.retrain.ledger import IntakePaths, LabelLog, Ledger, Origin
from pvqae.core import files
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.report import pictures
from pvqae.samples import images
from pvqae.serving import batch

if TYPE_CHECKING:
    from pvqae.inference.bundle import Detector

_SIDE = 1024  # longest side of a shown picture, pixels


@dataclass(frozen=True)
class Item:
    """An image to look at. `path`: where it came from, for people. `place`: the file itself, or what fetches it.

    `score` and `threshold` are None where they are not known; `version` is of the model that gave the score.
    """

    sha256: str
    category: str
    origin: Origin
    path: str
    place: str
    score: float | None = None
    threshold: float | None = None
    version: str = ""
    reason: str = ""

    @property
    def margin(self) -> float:
        """Score above the threshold: positive is an alarm."""
        return 0.0 if self.score is None or self.threshold is None else self.score - self.threshold

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Yield the image's file, fetched from its bucket if need be.

        Raises `DataError` when it is gone or holds something else.
        """
        with tempfile.TemporaryDirectory(prefix="pvqae-") as scratch:
            fetched = "|" in self.place and "://" in self.place
            file = _fetched(self, Path(scratch)) if fetched else Path(self.place)
            if not file.is_file() or files.digest(file) != self.sha256:
                raise DataError(
                    f"{self.path}: the image with sha256 {self.sha256[:12]} is gone or changed; score its source "
                    "again, or leave it"
                )
            yield file


def _fetched(item: Item, scratch: Path) -> Path:
    """Fetch what the journals of the scores' folder say a bucket calls this content."""
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
    raise DataError(f"{item.path}: {folder} has no note of it any more; score its source again")


def held(paths: IntakePaths, ledger: Ledger) -> list[Item]:
    """Return what the retraining holds back, highest scores first."""
    found = [
        Item(entry.sha256, entry.category, "held", entry.key, str(file), entry.score, reason=entry.reason)
        for entry in ledger.entries("review")
        if (file := paths.file(entry)) and file.is_file()
    ]
    return sorted(found, key=lambda item: (-(item.score or 0.0), item.sha256))


def gate(paths: IntakePaths, ledger: Ledger) -> list[Item]:
    """Return the normals of the gate that score far above what their champion knows, highest scores first.

    What arrived can be moved or taken out; what the dataset came with can only be noted.
    """
    raw = Layout(paths.root, paths.dataset).raw
    arrived = {entry.sha256 for entry in ledger.entries("accepted", "versioned")}
    return [
        Item(
            one.sha256,
            one.category,
            "gate" if one.sha256 in arrived else "source",
            one.path,
            str(raw / one.path),
            one.score,
            version=one.version,
            reason=f"a normal of the gate; the champion scores it {one.score:.3g}, above {one.limit:.3g}: is it really "
            "a good part?",
        )
        for one in gate_normals.doubtful(paths)
        if (raw / one.path).is_file()
    ]


def labelled(paths: IntakePaths, ledger: Ledger, log: LabelLog) -> list[Item]:
    """Return the images that are in the dataset by a label or with one that was applied, and what one took out."""
    said = {sha256: found for sha256, found in log.standing().items() if found.applied or found.earlier}
    return [
        Item(
            entry.sha256,
            entry.category,
            "gate" if entry.part == "gate" else "labelled",
            entry.key,
            str(file),
            said[entry.sha256].label.score,
            said[entry.sha256].label.threshold,
            said[entry.sha256].label.version,
        )
        for entry in ledger.entries("accepted", "versioned", "quarantined")
        if entry.sha256 in said and (file := file_of(paths, entry))
    ]


def scored(root: Path, dataset: str, categories: Sequence[str]) -> Iterator[Item]:
    """Yield every image that `python -m flows score` scored with a model of the dataset, newest results first."""
    for category in categories:
        tables = (root / "scores" / lineage.model_name(dataset, category)).glob("*/scores.jsonl")
        for file in sorted(tables, key=lambda file: (-file.stat().st_mtime_ns, file)):
            yield from (
                item for row in shared_files.records(file, dict) if (item := _scored(row, category, file.parent))
            )


def _scored(row: dict[str, Any], category: str, folder: Path) -> Item | None:
    """Return None for an image that could not be scored, and for a damaged row, which must not hide other images.

    `folder` knows how to fetch a bucket's images.
    """
    try:
        if row["score"] is None:
            return None
        place = f"{folder}|{row['path']}" if "://" in row["path"] else row["path"]
        said = "the model calls it a defect" if row["decision"] == "defect" else "the model calls it normal"
        facts = (row["score"], row["threshold"], row["version"])
        return Item(row["sha256"], category, "scored", row["path"], place, *facts, said)
    except (KeyError, TypeError):
        return None


def near(items: Iterable[Item], most: int) -> list[Item]:
    """Return those nearest the threshold on either side, nearest first, each image once."""
    return heapq.nsmallest(most, _once(items), key=lambda item: (abs(item.margin), item.sha256))


def alarms(items: Iterable[Item], most: int) -> list[Item]:
    """Return those above the threshold, farthest first, each image once: the worst false alarms if they are good."""
    above = (item for item in _once(items) if item.margin > 0)
    return heapq.nsmallest(most, above, key=lambda item: (-item.margin, item.sha256))


def _once(items: Iterable[Item]) -> Iterator[Item]:
    seen: set[str] = set()
    for item in items:
        if item.sha256 not in seen:
            seen.add(item.sha256)
            yield item


def tests(root: Path, dataset: str, version: Callable[[str], str]) -> list[Item]:
    """Return the false alarms of the last evaluation: normals of the test split above the threshold.

    `version` of a class: which registered version was evaluated, "" if none.
    """
    layout = Layout(root, dataset)
    try:
        figures = json.loads((layout.reports / "metrics.json").read_text("utf-8"))["classes"]
        with (layout.reports / "images.csv").open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["outcome"] == "false_alarm"]
    except FileNotFoundError:
        return []
    names = {row["class"]: version(row["class"]) for row in rows}
    return [item for row in rows if (item := _test(layout, row, figures, names))]


def _test(layout: Layout, row: dict[str, str], figures: dict[str, Any], versions: dict[str, str]) -> Item | None:
    """Return None for an image that is not there any more: the report may be older than the data."""
    category = row["class"]
    try:
        file = files.resolve(layout.data, row["path"])
        sha256 = files.digest(file)
    except (DataError, OSError):
        return None
    said = f"{row['kind']} in the test split, yet above the threshold"
    score, threshold = float(row["image_score"]), float(figures[category]["threshold"])
    return Item(sha256, category, "test", row["path"], str(file), score, threshold, versions[category], said)


class ThumbnailCache:
    """Small pictures and heatmaps below the folder `cache`, drawn when they are first asked for, one at a time.

    `champion` of a class: its version and detector, None where it has none.
    """

    def __init__(
        self, cache: Path, champion: "Callable[[str], tuple[str, Detector] | None]", bits: images.Bits = "auto"
    ) -> None:
        self._cache, self._champion, self._bits = cache, champion, bits
        self._lock = threading.Lock()  # a large image takes a gigabyte while it is decoded

    def picture(self, item: Item) -> Path:
        """Return a WebP of the pixels alone. Raises `DataError` for an image that can't be read."""
        file = self._cache / f"{item.sha256}.webp"
        with self._lock:
            if not file.is_file():
                with item.file() as source:
                    pixels = np.rint(images.read(source, bits=self._bits) * 255).astype(np.uint8)
                _keep(file, pictures.webp(pictures.thumbnail(pixels, _SIDE)))
        return file

    def heatmap(self, item: Item) -> Path | None:
        """Return a WebP of the champion's map over the picture, None without a champion. Raises as `picture`."""
        with self._lock:
            found = self._champion(item.category)
            if not found:
                return None
            version, detector = found
            file = self._cache / f"{item.sha256}-{item.category}-{version}-{detector.sha256[:16]}.webp"
            if not file.is_file():
                with item.file() as source:
                    _keep(file, pictures.webp(batch.heatmap(detector, detector.score(source))))
        return file


def _keep(file: Path, content: bytes) -> None:
    with files.whole_file(file) as part:
        part.write_bytes(content)
