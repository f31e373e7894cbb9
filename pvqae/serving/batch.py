"""Score many images with one bundle, through the one scoring path: rows as JSONL and CSV, heatmaps on request.

Only what is new is scored, a rerun gives the same files, memory does not grow, and what can't be scored is a row with
its reason, never a score.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pvqae.core import errors, files
from pvqae.core.errors import DataError, PvqaeError
from pvqae.core.progress import track
from pvqae.drift import drift
from pvqae.drift.profile import level_shares
from pvqae.inference.bundle import Detector
from pvqae.inference.scoring import PARTS, Scored
from pvqae.report import pictures
from pvqae.samples import images
from pvqae.serving import batch_rows, batch_source
from pvqae.serving.batch_rows import Values
from pvqae.serving.batch_source import Item, Source
from pvqae.serving.journal import Journal

HEATMAPS = "heatmaps"


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
                sha256 = files.digest(file)
                record = _record(detector, file)[0]
            except (PvqaeError, OSError) as error:
                yield batch_rows.of(detector, version, item.path, "", item.modified, {"error": str(error)})
                continue
            yield batch_rows.of(detector, version, item.path, sha256, item.modified, record)


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
                if errors.is_full(error):  # ours, no fault of the image
                    raise
                journal.settle(number, "", str(error))
        defects, failed = batch_rows.write(
            out, _final(detector, journal, version, out), detector.config["model"]["levels"]
        )
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
        sha256 = files.digest(file)
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
        pixels, captured = batch_source.read(file, bits=detector.scorer.image.bits)
    except DataError as error:
        return {"error": str(error)}, None
    return _judged(detector, pixels, captured)


def _bits(detector: Detector) -> images.Bits:
    return detector.scorer.image.bits


def _judged(detector: Detector, pixels: images.Floats, captured: str) -> tuple[Values, Scored | None]:
    if reason := batch_source.unfit(pixels):
        return {"error": reason}, None
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
    pixels, header = images.decode(data, name, _bits(detector))
    record, scored = _judged(detector, pixels, header.captured_at)
    return batch_rows.of(detector, version, name, hashlib.sha256(data).hexdigest(), "", record), scored


def failed(detector: Detector, data: bytes, name: str, error: str, version: str = "") -> Values:
    """The row of an image that `one` could not score."""
    return batch_rows.of(detector, version, name, hashlib.sha256(data).hexdigest(), "", {"error": error})


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


def _final(detector: Detector, journal: Journal, version: str, out: Path) -> Iterator[Values]:
    for _, path, _, modified, sha256, reason in journal.listed():
        record = {"error": reason} if reason else journal.find(sha256)
        assert record is not None
        row = batch_rows.of(detector, version, path, sha256, modified, record)
        name = f"{HEATMAPS}/{_picture(sha256)}" if sha256 else ""
        yield {**row, "heatmap": name if name and (out / name).is_file() else ""}
