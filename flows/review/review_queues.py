"""Which images a person should look at, and in which order: held back, nearest the threshold, false alarms."""

import csv
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.core import lineage
from flows.retrain.arrivals_ledger import Ledger, Places
from flows.retrain.labels import Origin
from pvqae.core import files
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout

QUEUES = ("held", "near", "alarms")


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


def held(places: Places, ledger: Ledger) -> list[Item]:
    """What the retraining screen holds back, surest doubts first: the highest scores."""
    found = [
        Item(entry.sha256, entry.category, "held", entry.key, str(file), entry.score, reason=entry.reason)
        for entry in ledger.entries("review")
        if (file := places.file(entry)) and file.is_file()
    ]
    return sorted(found, key=lambda item: (-(item.score or 0.0), item.sha256))


def scored(root: Path, dataset: str, categories: Sequence[str]) -> Iterator[Item]:
    """Every image that `python -m flows score` has scored with a model of the dataset, newest results first."""
    for category in categories:
        files = (root / "scores" / lineage.model_name(dataset, category)).glob("*/scores.jsonl")
        for file in sorted(files, key=lambda file: (-file.stat().st_mtime_ns, file)):
            with file.open(encoding="utf-8") as lines:
                yield from (item for line in lines if (item := _scored(json.loads(line), category, file.parent)))


def _scored(row: dict[str, Any], category: str, folder: Path) -> Item | None:
    """None for an image that could not be scored. A bucket's images are fetched by what `folder` knows of them."""
    if row["score"] is None:
        return None
    place = f"{folder}|{row['path']}" if "://" in row["path"] else row["path"]
    said = "the model calls it a defect" if row["decision"] == "defect" else "the model calls it normal"
    return Item(
        row["sha256"], category, "scored", row["path"], place, row["score"], row["threshold"], row["version"], said
    )


def near(items: Iterable[Item], most: int) -> list[Item]:
    """Those nearest the threshold, on either side, nearest first; each image once."""
    return heapq.nsmallest(most, _once(items), key=lambda item: (abs(item.margin), item.sha256))


def alarms(items: Iterable[Item], most: int) -> list[Item]:
    """What lies above the threshold, farthest first: if it is a good part, the worst of false alarms; each once."""
    above = (item for item in _once(items) if item.margin > 0)
    return heapq.nsmallest(most, above, key=lambda item: (-item.margin, item.sha256))


def _once(items: Iterable[Item]) -> Iterator[Item]:
    seen: set[str] = set()
    for item in items:
        if item.sha256 not in seen:
            seen.add(item.sha256)
            yield item


def tests(root: Path, dataset: str, version: Callable[[str], str]) -> list[Item]:
    """The false alarms of the last evaluation: normals of the test split above the threshold.

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
    """None for an image that is not there any more: the report may be older than the data."""
    category = row["class"]
    try:
        file = files.resolve(layout.data, row["path"])
        sha256 = files.digest(file)
    except (DataError, OSError):
        return None
    said = f"{row['kind']} in the test split, yet above the threshold"
    score, threshold = float(row["image_score"]), float(figures[category]["threshold"])
    return Item(sha256, category, "test", row["path"], str(file), score, threshold, versions[category], said)
