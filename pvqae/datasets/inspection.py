"""Decode every image once: its header, hash and statistics, or the reason why it cannot be used.

Facts about images kept by their sha256, so that a manifest that is built again only hashes what it has seen before.

One SQLite file for each state of the code that decodes and measures: what other code has found is never used.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from pvqae.core import files, runtime
from pvqae.core.errors import DataError
from pvqae.samples import images
from pvqae.samples.images import Bits, Floats, Header

_CHUNK = 1024  # images
_FLAT = 1e-4  # a deviation below it is rounding


@dataclass(frozen=True)
class _Statistics:
    """Of the grey image in [0, 1]; sharpness is the mean absolute difference of neighbouring pixels."""

    mean: float
    std: float
    sharpness: float


@dataclass(frozen=True)
class _Range:
    """The lowest and the highest value of all channels in [0, 1], and the skewness of the grey image."""

    lowest: float
    highest: float
    skew: float


@dataclass(frozen=True)
class Facts:
    """What one full decode says about a file."""

    sha256: str
    header: Header
    statistics: _Statistics
    range: _Range


def _sharpness(grey: Floats) -> float:
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1) if grey.shape[axis] > 1]
    return float(np.mean([step.mean(dtype=np.float64) for step in steps])) if steps else 0.0


def statistics(image: Floats) -> _Statistics:
    """Return statistics of an image (H0, W0, 3); six digits, so that their text is the same on every machine."""
    return _statistics(image.mean(axis=2))


def _statistics(grey: Floats) -> _Statistics:
    values = grey.mean(dtype=np.float64), grey.std(dtype=np.float64), _sharpness(grey)
    return _Statistics(*(round(float(value), 6) for value in values))


def _range_of(image: Floats, grey: Floats) -> _Range:
    """Return the range of an image (H0, W0, 3); six digits."""
    centred = grey - grey.mean(dtype=np.float64)
    powers = np.square(centred)
    deviation = float(np.sqrt(powers.mean(dtype=np.float64)))
    powers *= centred  # in place: the image may be a whole line scan
    skew = float(powers.mean(dtype=np.float64)) / deviation**3 if deviation > _FLAT else 0.0
    return _Range(*(round(float(value), 6) for value in (image.min(), image.max(), skew)))


def inspect(path: Path, root: Path, bits: Bits = "auto") -> Facts | str:
    """Return the facts of an image, `path` relative to `root`, or why it cannot be read; `bits` is `image.bits`."""
    try:
        header = images.header(
            path, root, bits
        )  # first: it looks at nothing outside the root, and its errors name no root
        pixels = images.read(path, root, bits)
        grey = pixels.mean(axis=2)
        return Facts(files.digest(root / path), header, _statistics(grey), _range_of(pixels, grey))
    except (DataError, OSError) as error:
        return str(error)


def _sha256(path: Path, root: Path) -> str:
    """Return "" where the file can't be read: `inspect` says why."""
    try:
        return files.digest(files.resolve(root, path.as_posix()))
    except (DataError, OSError):
        return ""


def _facts(sha256: str, values: Any) -> Facts:
    header, measured, reached = values
    return Facts(sha256, Header(*header), _Statistics(*measured), _Range(*reached))


def inspect_all(
    paths: Sequence[Path], root: Path, cache: Path | None = None, bits: Bits = "auto"
) -> Iterator[Facts | str]:
    """Yield what `inspect` returns, in order, with threads, because decoding and numpy leave the interpreter free: a
    thread per core, since each holds an image.

    What `cache` (of `kept.file`) knows by its sha256 and `bits` is hashed, not decoded. Whatever the number of paths,
    the facts of `_CHUNK` images are in memory.
    """
    with ThreadPoolExecutor(runtime.cores()) as pool, _opened(cache) as store:
        for start in range(0, len(paths), _CHUNK):
            some = paths[start : start + _CHUNK]
            hashes = list(pool.map(_sha256, some, repeat(root)))
            keys = [f"{sha256} {bits}" for sha256 in hashes]
            known = store.find(keys)
            missing = [path for path, key in zip(some, keys, strict=True) if key not in known]
            inspected, new = pool.map(inspect, missing, repeat(root), repeat(bits)), list[Facts]()
            try:
                for sha256, key in zip(hashes, keys, strict=True):
                    facts = _facts(sha256, known[key]) if key in known else next(inspected)
                    if key not in known and isinstance(facts, Facts):
                        new.append(facts)
                    yield facts
            finally:
                store.put(
                    {f"{f.sha256} {bits}": (astuple(f.header), astuple(f.statistics), astuple(f.range)) for f in new}
                )


_PACKAGE = Path(__file__).parent.parent
_DECODING = ("samples/decoding.py", "samples/images.py", "datasets/inspection.py")
_TABLE = "CREATE TABLE IF NOT EXISTS facts (sha256 TEXT PRIMARY KEY, facts TEXT, sum TEXT) WITHOUT ROWID"
_PART = 500  # hashes of one question; SQLite takes 999 at least


def file(folder: Path) -> Path:
    """Return the file of this code below `folder`."""
    code = hashlib.sha256(b"".join((_PACKAGE / name).read_bytes() for name in _DECODING)).hexdigest()
    return folder / f"facts-{code[:16]}.sqlite"


class _Kept:
    """Texts by sha256. A file that is damaged, locked for long or full costs speed only."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def find(self, hashes: Sequence[str]) -> dict[str, object]:
        """Return the facts of those `hashes` that are known."""
        found: dict[str, object] = {}
        with contextlib.suppress(sqlite3.Error, ValueError):
            for start in range(0, len(hashes), _PART):
                some = hashes[start : start + _PART]
                marks = ",".join("?" * len(some))
                rows = self._base.execute(f"SELECT sha256, facts, sum FROM facts WHERE sha256 IN ({marks})", some)
                found |= {sha256: json.loads(text) for sha256, text, sum_ in rows if sum_ == _sum(sha256, text)}
        return found

    def put(self, facts: Mapping[str, object]) -> None:
        """Keep facts; they are on the disk when this returns."""
        texts = {sha256: json.dumps(values) for sha256, values in facts.items()}
        rows = [(sha256, text, _sum(sha256, text)) for sha256, text in texts.items()]
        with contextlib.suppress(sqlite3.Error), self._base:
            self._base.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)


def _sum(sha256: str, text: str) -> str:
    """Return a check sum: SQLite notices no flipped byte."""
    return hashlib.sha256(f"{sha256} {text}".encode()).hexdigest()[:16]


@contextmanager
def _opened(path: Path | None) -> Iterator[_Kept]:
    """Return the facts in `path`; None keeps them for this run alone."""
    base = sqlite3.connect(":memory:")
    if path is not None:
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(path, timeout=30)
    try:
        with contextlib.suppress(sqlite3.Error):
            base.execute(_TABLE)
        yield _Kept(base)
    finally:
        base.close()
