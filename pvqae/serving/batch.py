"""Score many images with one bundle, through the one scoring path: rows as JSONL and CSV, pictures on request.

Only what is new is scored, a rerun gives the same files, memory does not grow, and an image that can't be scored is a
row with its reason, never a score. What is done is kept in one SQLite file per bundle, from which a killed run goes on.
"""

import hashlib
import json
import math
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from pvqae.core import errors, files, runtime
from pvqae.core.errors import ConfigError, DataError, PvqaeError
from pvqae.core.progress import track
from pvqae.drift.profile import level_shares, measure
from pvqae.inference.bundle import Detector
from pvqae.inference.scoring import Scored
from pvqae.samples import images
from pvqae.serving import batch_rows, batch_source
from pvqae.serving.batch_rows import Values
from pvqae.serving.batch_source import Item, Source

if TYPE_CHECKING:
    from pvqae.report import pictures

_PLACES = {"heatmap": "heatmaps/{}.webp", "mask": "masks/{}.png"}  # kind of picture → its file
_Out = tuple[Path, tuple[str, ...]]  # a folder, and the kinds of pictures that it needs of each image
_NO_PICTURES: _Out = (Path(), ())


@dataclass(frozen=True)
class Outcome:
    """What a run came to: numbers of images."""

    images: int
    scored: int  # now; the others were known
    defects: int
    failed: int

    def sentence(self, out: Path) -> str:
        """Return the numbers in words; `out` is the folder with the scores."""
        others = self.images - self.scored - self.failed
        known = f"{others} known, " if others else ""
        return (
            f"{self.images} images: {self.scored} scored now, {known}{self.defects} above the threshold, {self.failed} "
            f"not scored (column error of {out / batch_rows.CSV})"
        )


_TABLES = """
CREATE TABLE IF NOT EXISTS results (sha256 TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS known (identity TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
CREATE TEMP TABLE listing (
    number INTEGER PRIMARY KEY, path TEXT, identity TEXT, modified TEXT, sha256 TEXT DEFAULT '', reason TEXT DEFAULT ''
);
"""


class _Journal:
    """Open `file`, or memory alone; a result is on the disk when `put` returns."""

    def __init__(self, file: Path | None = None) -> None:
        self._base = sqlite3.connect(file or ":memory:", isolation_level=None)
        self._base.executescript(_TABLES)

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()

    def find(self, sha256: str) -> Values | None:
        """Return the result for an image's bytes; None if it is not known."""
        row = self._base.execute("SELECT record FROM results WHERE sha256 = ?", (sha256,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, sha256: str, record: Values) -> None:
        text = json.dumps(record, allow_nan=False)
        self._base.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (sha256, text))

    def sha256_of(self, identity: str) -> str:
        """Return the hash of what a store calls `identity`; "" if it was never fetched."""
        row = self._base.execute("SELECT sha256 FROM known WHERE identity = ?", (identity,)).fetchone()
        return str(row[0]) if row else ""

    def know(self, identity: str, sha256: str) -> None:
        if identity:
            self._base.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (identity, sha256))

    def enlist(self, path: str, identity: str, modified: str) -> None:
        """Add one image to this run, in the order of the output."""
        columns = "INSERT INTO listing (path, identity, modified) VALUES (?, ?, ?)"
        self._base.execute(columns, (path, identity, modified))

    def __len__(self) -> int:
        return int(self._base.execute("SELECT count(*) FROM listing").fetchone()[0])

    def listed(self) -> Iterator[tuple[int, str, str, str, str, str]]:
        """Yield number, path, identity, modified, sha256, reason; images may be settled meanwhile."""
        number = 0
        while row := self._base.execute(
            "SELECT * FROM listing WHERE number > ? ORDER BY number LIMIT 1", (number,)
        ).fetchone():
            number = row[0]
            yield row

    def settle(self, number: int, sha256: str, reason: str) -> None:
        """Record what became of a listed image: its hash, or why it has none."""
        self._base.execute("UPDATE listing SET sha256 = ?, reason = ? WHERE number = ?", (sha256, reason, number))


@dataclass(frozen=True)
class _Job:
    """An image on its way: its file and hash, then its record or the reason why it has none."""

    number: int
    item: Item
    sha256: str = ""
    file: Path | None = None  # None: nothing to score
    record: Values | None = None
    reason: str = ""
    pictures: tuple[tuple[Path, bytes], ...] = ()


def rows(detector: Detector, source: Source, version: str = "") -> Iterator[Values]:
    """Yield a row per image as soon as it and those before it are scored, and keep nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        jobs = (_fetched(source, _Job(number, item), Path(scratch)) for number, item in enumerate(source.items()))
        score = partial(_scored, detector, Path(scratch), _NO_PICTURES)
        for job in runtime.in_order(score, jobs, detector.scorer.at_once):
            record = {"error": job.reason} if job.record is None else job.record
            sha256 = "" if job.record is None else job.sha256
            yield batch_rows.of(detector, version, job.item.path, sha256, job.item.modified, record)


def check_marks(detector: Detector) -> None:
    """Raise `ConfigError` for a bundle without a pixel threshold, which marks nothing."""
    if detector.pixel_threshold is None:
        raise ConfigError(
            "masks: the bundle has no pixel threshold, it was made by a version before there was one; run "
            "`python -m flows train` again, or leave masks out"
        )


def run(
    detector: Detector, source: Source, out: Path, version: str = "", heatmaps: bool = False, masks: bool = False
) -> Outcome:
    """Score what is new of `source`; write scores.jsonl and scores.csv below `out`, in the order of the source.

    `version` is the registered version's number, for the rows. Pictures are below `out`/heatmaps and `out`/masks, by
    the image's hash. Raises `ConfigError` for masks by a bundle without a pixel threshold, and as `make_folder`.
    """
    if masks:
        check_marks(detector)
    wanted = out, tuple(kind for kind, asked in (("heatmap", heatmaps), ("mask", masks)) if asked)
    files.make_folder(out)
    scored = 0
    file = out / f".journal-{detector.sha256[:16]}.sqlite"
    with _Journal(file) as journal, tempfile.TemporaryDirectory(prefix="pvqae-") as scratch:
        for item in source.items():
            journal.enlist(item.path, item.identity, item.modified)
        total = len(journal)
        jobs = (_job(journal, source, row, Path(scratch), wanted) for row in journal.listed())
        done = runtime.in_order(partial(_scored, detector, Path(scratch), wanted), jobs, detector.scorer.at_once)
        for job in track(done, "scoring", total):
            for picture, drawn in job.pictures:
                with files.whole_file(picture) as part:
                    part.write_bytes(drawn)
            if job.record is not None:
                journal.put(job.sha256, job.record)
                scored += not job.record["error"]
            journal.settle(job.number, "" if job.reason else job.sha256, job.reason)
        defects, failed = batch_rows.write(
            out, _final(detector, journal, version, out), detector.config["model"]["levels"]
        )
    return Outcome(total, scored, defects, failed)


def _job(journal: _Journal, source: Source, row: tuple[int, str, str, str, str, str], scratch: Path, out: _Out) -> _Job:
    """Return what is to be done for a listed image: nothing where its result is known."""
    number, path, identity, modified, *_ = row
    job = _Job(number, Item(path, identity, modified), journal.sha256_of(identity))
    if job.sha256 and _done(journal, job.sha256, path, out):
        return job
    job = _fetched(source, job, scratch)
    if not job.reason:
        journal.know(identity, job.sha256)
        if _done(journal, job.sha256, path, out):
            shutil.rmtree(scratch / str(number))
            return replace(job, file=None)
    return job


def _fetched(source: Source, job: _Job, scratch: Path) -> _Job:
    """Return the job with its hash and local file, in a folder of its own below `scratch` if it was fetched."""
    own = scratch / str(job.number)
    own.mkdir()
    try:
        file = source.file(job.item, own)
        return replace(job, file=file, sha256=files.digest(file))
    except (PvqaeError, OSError) as error:
        shutil.rmtree(own)
        return _failed(job, error)


def _scored(detector: Detector, scratch: Path, out: _Out, job: _Job) -> _Job:
    """Return the job with its record and pictures; what was fetched for it is gone."""
    if job.file is None:
        return job
    try:
        record, scored = _record(detector, job.file)
        if scored is None:
            return replace(job, record=record)
        name = partial(_picture, sha256=job.sha256, path=job.item.path)
        drawn = tuple((out[0] / name(kind), _drawing(detector, scored, kind)) for kind in out[1])
        return replace(job, record=record, pictures=drawn)
    except (PvqaeError, OSError) as error:
        return _failed(job, error)
    finally:
        shutil.rmtree(scratch / str(job.number))


def _failed(job: _Job, error: Exception) -> _Job:
    if errors.is_full(error):  # ours, no fault of the image
        raise error
    return replace(job, file=None, reason=str(error))


def _done(journal: _Journal, sha256: str, path: str, out: _Out) -> bool:
    record = journal.find(sha256)
    drawn = all(_drawn(out[0], kind, sha256, path) for kind in out[1])
    return record is not None and (drawn or bool(record["error"]))


def _picture(kind: str, sha256: str, path: str) -> str:
    """Name a picture after its image, for people, and its content: images of one name are in several folders."""
    stem = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:40]
    return _PLACES[kind].format(f"{stem}-{sha256[:16]}")


def _drawn(out: Path, kind: str, sha256: str, path: str) -> str:
    """Return the picture of an image that is there, "" for none; before 0.2 it was named after the content alone."""
    names = _picture(kind, sha256, path), _PLACES[kind].format(sha256[:32])
    return next((name for name in names if (out / name).is_file()), "")


def _record(detector: Detector, file: Path) -> tuple[Values, Scored | None]:
    """Return all that depends on the image's bytes and the bundle alone."""
    try:
        pixels, captured = batch_source.read(file, bits=detector.scorer.image.bits)
    except DataError as error:
        return {"error": str(error)}, None
    return _judged(detector, pixels, captured)


def _judged(detector: Detector, pixels: images.Floats, captured: str) -> tuple[Values, Scored | None]:
    if reason := batch_source.unfit(pixels):
        return {"error": reason}, None
    scored = detector.score(pixels)
    numbers = [scored.image_score, *scored.parts.values()]
    if not all(map(math.isfinite, numbers)):
        return {"error": f"a score is not finite: {numbers}; calibrate this class again"}, None
    shares = None
    if scored.allocates:
        shares = list(level_shares(scored.levels, detector.config["model"]["levels"]).values())
    return {
        "error": "",
        "score": scored.image_score,
        "parts": scored.parts,
        **(detector.marks(scored) or {}),
        "level_shares": shares,
        "statistics": measure(pixels),
        "captured_at": captured,
    }, scored


def one(detector: Detector, data: bytes, name: str, version: str = "") -> tuple[Values, Scored | None]:
    """Return the row of an image given as bytes, and its result unless it could not be scored."""
    try:
        pixels, header = images.decode(data, name, detector.scorer.image.bits)
    except DataError as error:
        record, scored = {"error": str(error)}, None
    else:
        record, scored = _judged(detector, pixels, header.captured_at)
    return batch_rows.of(detector, version, name, hashlib.sha256(data).hexdigest(), "", record), scored


def of_pixels(
    detector: Detector, pixels: images.Floats, path: str, taken: str = "", version: str = ""
) -> tuple[Values, Scored | None]:
    """Return the row of pixels (H0, W0, 3) in [0, 1], and their result unless they could not be scored."""
    record, scored = _judged(detector, pixels, taken)
    return batch_rows.of(detector, version, path, "", taken, record), scored


def unscored(detector: Detector, path: str, reason: str, taken: str = "", version: str = "") -> Values:
    """Return the row of what could not be read, with its reason."""
    return batch_rows.of(detector, version, path, "", taken, {"error": reason})


def heatmap(detector: Detector, scored: Scored) -> "pictures.Bytes":
    """Draw the map over the picture, on the scale that the calibration fixed: as in the report."""
    from pvqae.report import pictures  # with scipy.ndimage: not for scores alone

    return pictures.over(scored.picture, scored.anomaly_map, detector.card)


def mask(detector: Detector, scored: Scored) -> bytes | None:
    """Return what is marked as a PNG of the image's size, white on black; None without a pixel threshold."""
    from pvqae.report import pictures

    marked = detector.mask(scored)
    return None if marked is None else pictures.png(marked.astype(np.uint8) * 255)


def _drawing(detector: Detector, scored: Scored, kind: str) -> bytes:
    from pvqae.report import pictures

    drawn = mask(detector, scored) if kind == "mask" else pictures.webp(heatmap(detector, scored))
    assert drawn is not None  # `run` looks for a pixel threshold first
    return drawn


def _final(detector: Detector, journal: _Journal, version: str, out: Path) -> Iterator[Values]:
    for _, path, _, modified, sha256, reason in journal.listed():
        record = {"error": reason} if reason else journal.find(sha256)
        assert record is not None
        row = batch_rows.of(detector, version, path, sha256, modified, record)
        yield row | {kind: _drawn(out, kind, sha256, path) if sha256 else "" for kind in _PLACES}
