"""Score many images with one bundle, through the one scoring path: rows as JSONL and CSV, heatmaps on request.

Only what is new is scored, a rerun gives the same files, memory does not grow, and what can't be scored is a row with
its reason, never a score.
"""

import csv
import datetime
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pvqae import disk
from pvqae.datasets import drift, images, manifest
from pvqae.errors import DataError, PvqaeError
from pvqae.evaluation import pictures
from pvqae.evaluation.journal import Journal
from pvqae.evaluation.metrics import is_defect
from pvqae.inference.bundle import Detector
from pvqae.inference.profile import level_shares
from pvqae.inference.scoring import PARTS, Scored
from pvqae.progress import track

Values = dict[str, Any]
KEYS = {"path", "taken", "score", "bundle_sha256", "level_shares", "parts", "statistics", "error"}  # that readers need
JSONL, CSV, HEATMAPS = "scores.jsonl", "scores.csv", "heatmaps"


@dataclass(frozen=True)
class Item:
    """An image where it lies. `identity` names its content where the store does (else ""), so that it need not be
    fetched again; `modified` is ISO 8601 in UTC, or "" where it is not known."""

    path: str
    identity: str = ""
    modified: str = ""


class Source(Protocol):
    """Where images come from: files here, a bucket in the flows."""

    def items(self) -> Iterable[Item]: ...
    def file(self, item: Item, scratch: Path) -> Path:
        """A local file of the item, below `scratch` if it was fetched. Raises `PvqaeError` or `OSError`."""
        ...


@dataclass(frozen=True)
class Files:
    """Files, and the images in folders with all below them, sorted. Links to folders are not followed."""

    places: tuple[Path, ...]

    def items(self) -> Iterator[Item]:
        """Raises `DataError` for a place that is not there."""
        for place in self.places:
            if place.is_dir():
                yield from _in_folder(place)
            elif place.exists():
                yield _item(place)
            else:
                raise DataError(f"{place}: expected an image or a folder of images, found nothing; correct the path")

    def file(self, item: Item, scratch: Path) -> Path:
        path = Path(item.path)
        if path.is_symlink() and path not in self.places and not any(map(partial(_below, path), self.places)):
            raise DataError(f"{path}: expected a file of this folder, found a link that leaves it; copy the file")
        if not path.exists():
            raise DataError(
                f"{path}: expected an image, found no file: it is gone, or its name is not UTF-8 or has control "
                "characters, here as \\x.. codes; rename it"
            )
        return path


def _below(path: Path, place: Path) -> bool:
    try:
        return path.resolve().is_relative_to(place.resolve())
    except RuntimeError:  # links in a circle
        return False


def _in_folder(place: Path) -> Iterator[Item]:
    for folder, below, names in os.walk(place):
        below.sort()
        for name in sorted(names):
            if is_image(name):
                yield _item(Path(folder, name))


def is_image(name: str) -> bool:
    """Whether a name in a folder or bucket is meant as an image: other files there are not our business."""
    return Path(name).suffix.lower() in images.SUFFIXES and not Path(name).name.startswith(".")


def _item(path: Path) -> Item:
    """Named as tables can hold it: a spreadsheet takes what starts with = + - @ for a formula."""
    name = manifest.shown(path.as_posix())
    name = f"./{name}" if name.startswith(("=", "+", "-", "@")) else name
    try:
        when = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except OSError:
        when = ""
    return Item(name, modified=when)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: numbers of images."""

    images: int
    scored: int  # now; the others were known
    defects: int
    failed: int


def rows(detector: Detector, source: Source, version: str = "") -> Iterator[Values]:
    """A row per image, at once, nothing kept."""
    with tempfile.TemporaryDirectory() as scratch:
        for item in source.items():
            try:
                file = source.file(item, Path(scratch))
                sha256 = manifest.digest(file)
                record = _record(detector, file)[0]
            except (PvqaeError, OSError) as error:
                yield _row(detector, version, item.path, "", item.modified, {"error": str(error)})
                continue
            yield _row(detector, version, item.path, sha256, item.modified, record)


def run(detector: Detector, source: Source, out: Path, version: str = "", heatmaps: bool = False) -> Outcome:
    """Score what is new of `source`; write scores.jsonl and scores.csv below `out`, in the order of the source.

    `version` is the registered version's number, for the rows. Heatmaps are below `out`/heatmaps, by the image's hash.
    """
    out.mkdir(parents=True, exist_ok=True)
    scored = 0
    file = out / f".journal-{detector.sha256[:16]}.sqlite"
    with Journal(file) as journal, tempfile.TemporaryDirectory(prefix="pvqae-") as scratch:
        for item in source.items():
            journal.enlist(item.path, item.identity, item.modified)
        total = len(journal)
        for number, path, identity, modified, *_ in track(journal.listed(), "scoring", total):
            item = Item(path, identity, modified)
            try:
                sha256, new = _settle(detector, journal, source, item, Path(scratch), out if heatmaps else None)
                journal.settle(number, sha256, "")
                scored += new
            except (PvqaeError, OSError) as error:
                if disk.is_full(error):  # ours, no fault of the image
                    raise
                journal.settle(number, "", str(error))
        defects, failed = _write(out, _final(detector, journal, version, out), detector.config["model"]["levels"])
    return Outcome(total, scored, defects, failed)


def _settle(
    detector: Detector, journal: Journal, source: Source, item: Item, scratch: Path, out: Path | None
) -> tuple[str, bool]:
    """The image's hash, and whether it had to be scored. `out`: the folder that needs its heatmap."""
    sha256 = journal.sha256_of(item.identity)
    if sha256 and _done(journal, sha256, out):
        return sha256, False
    file = source.file(item, scratch)
    try:
        sha256 = manifest.digest(file)
        journal.know(item.identity, sha256)
        if _done(journal, sha256, out):
            return sha256, False
        record, scored = _record(detector, file)
        if out and scored:
            _draw(detector, scored, out / HEATMAPS / _picture(sha256))
        journal.put(sha256, record)
        return sha256, True
    finally:
        if scratch in file.parents:
            file.unlink(missing_ok=True)


def _done(journal: Journal, sha256: str, out: Path | None) -> bool:
    record = journal.find(sha256)
    drawn = out is None or (out / HEATMAPS / _picture(sha256)).is_file()
    return record is not None and (drawn or bool(record["error"]))


def _picture(sha256: str) -> str:
    return f"{sha256[:32]}.webp"


def _record(detector: Detector, file: Path) -> tuple[Values, Scored | None]:
    """What an image's bytes and the bundle determine."""
    try:
        pixels, captured = images.read(file), images.header(file).captured_at
    except DataError as error:
        return {"error": str(error).replace(str(file), "the file")}, None
    return _judged(detector, pixels, captured)


def _judged(detector: Detector, pixels: images.Floats, captured: str) -> tuple[Values, Scored | None]:
    smallest, largest = manifest.SIDES
    if min(pixels.shape[:2]) < smallest or max(pixels.shape[:2]) > largest:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        return {"error": f"expected sides of {smallest} to {largest} pixels, found {found}; export it again"}, None
    scored = detector.score(pixels)
    numbers = [scored.image_score, *(scored.parts[name] for name in PARTS)]
    if not all(map(math.isfinite, numbers)):
        return {"error": f"expected finite scores, found {numbers}; calibrate this class again"}, None
    shares = level_shares(scored.levels, detector.config["model"]["levels"])
    return {
        "error": "",
        "score": scored.image_score,
        "parts": {name: scored.parts[name] for name in PARTS},
        "level_shares": list(shares.values()),
        "statistics": drift.measure(pixels),
        "captured_at": captured,
    }, scored


def one(detector: Detector, data: bytes, name: str, version: str = "") -> tuple[Values, Scored | None]:
    """The row of an image whose bytes are at hand, and its result unless it could not be scored.

    Raises `DataError`, naming the image `name`, where the bytes are no image within the limits.
    """
    pixels, header = images.decode(data, name)
    record, scored = _judged(detector, pixels, header.captured_at)
    return _row(detector, version, name, hashlib.sha256(data).hexdigest(), "", record), scored


def failed(detector: Detector, data: bytes, name: str, error: str, version: str = "") -> Values:
    """The row of an image that `one` could not score."""
    return _row(detector, version, name, hashlib.sha256(data).hexdigest(), "", {"error": error})


def heatmap(detector: Detector, scored: Scored) -> pictures.Bytes:
    """The map over the picture, on the scale that the calibration fixed: as in the report."""
    small, card = pictures.thumbnail(scored.picture), detector.card
    low, high = card["map_scale"]
    return pictures.heatmap(small, pictures.shrink(scored.anomaly_map), (low, high), card["map_threshold"])


def _draw(detector: Detector, scored: Scored, file: Path) -> None:
    drawn = heatmap(detector, scored)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(pictures.webp(drawn))
    os.replace(part, file)


def _row(detector: Detector, version: str, path: str, sha256: str, modified: str, record: Values) -> Values:
    """A row of the output. margin = score - threshold: above 0 is a defect. decision "" means not scored."""
    score, threshold = record.get("score"), detector.threshold
    return {
        "path": path,
        "sha256": sha256,
        "taken": record.get("captured_at") or modified,
        "score": score,
        "threshold": threshold,
        "decision": "" if score is None else "defect" if is_defect(score, threshold) else "normal",
        "margin": None if score is None else score - threshold,
        "version": version,
        "bundle_sha256": detector.sha256,
        "level_shares": record.get("level_shares"),
        "parts": record.get("parts"),
        "statistics": record.get("statistics"),
        "error": record["error"],
    }


def _final(detector: Detector, journal: Journal, version: str, out: Path) -> Iterator[Values]:
    for _, path, _, modified, sha256, reason in journal.listed():
        record = {"error": reason} if reason else journal.find(sha256)
        assert record is not None
        row = _row(detector, version, path, sha256, modified, record)
        name = f"{HEATMAPS}/{_picture(sha256)}" if sha256 else ""
        yield {**row, "heatmap": name if name and (out / name).is_file() else ""}


def _write(out: Path, found: Iterable[Values], levels: int) -> tuple[int, int]:
    """Both files, whole or not at all; the numbers of defects and of failures."""
    parts = [out / f"{name}.part" for name in (JSONL, CSV)]
    defects = failed = 0
    with ExitStack() as stack:
        lines, table = (stack.enter_context(part.open("w", encoding="utf-8", newline="")) for part in parts)
        writer = csv.DictWriter(table, columns(levels), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for row in found:
            defects, failed = defects + (row["decision"] == "defect"), failed + bool(row["error"])
            lines.write(as_json(row) + "\n")
            writer.writerow(flatten(row))
    for part in parts:
        os.replace(part, part.with_suffix(""))
    return defects, failed


def as_json(row: Values) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def columns(levels: int) -> list[str]:
    """The columns of the CSV."""
    first = ("path", "sha256", "taken", "score", "threshold", "decision", "margin", "version", "bundle_sha256")
    shares = [f"level_{r}" for r in range(levels)]
    return [*first, *PARTS, *shares, *drift.STATISTICS, "heatmap", "error"]


def flatten(row: Values) -> Values:
    """A row without nesting, as CSV and drift want it."""
    shares = {f"level_{r}": share for r, share in enumerate(row["level_shares"] or ())}
    return {**row, **(row["parts"] or {}), **shares, **(row["statistics"] or {})}
