"""Decode every image once: its header, hash and statistics, or the reason why it cannot be used."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from pvqae.datasets import images, kept, manifest
from pvqae.datasets.images import Bits, Floats, Header
from pvqae.errors import DataError

CHUNK = 1024  # images
FLAT = 1e-4  # a deviation below it is rounding


@dataclass(frozen=True)
class Statistics:
    """Of the grey image in [0, 1]; sharpness is the mean absolute difference of neighbouring pixels."""

    mean: float
    std: float
    sharpness: float


@dataclass(frozen=True)
class Range:
    """The lowest and the highest value of all channels in [0, 1], and the skewness of the grey image."""

    lowest: float
    highest: float
    skew: float


@dataclass(frozen=True)
class Facts:
    """What one full decode says about a file."""

    sha256: str
    header: Header
    statistics: Statistics
    range: Range


def _sharpness(grey: Floats) -> float:
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1) if grey.shape[axis] > 1]
    return float(np.mean([step.mean(dtype=np.float64) for step in steps])) if steps else 0.0


def statistics(image: Floats) -> Statistics:
    """Statistics of an image (H0, W0, 3); six digits, so that their text is the same on every machine."""
    grey = image.mean(axis=2)
    values = grey.mean(dtype=np.float64), grey.std(dtype=np.float64), _sharpness(grey)
    return Statistics(*(round(float(value), 6) for value in values))


def range_of(image: Floats) -> Range:
    """The range of an image (H0, W0, 3); six digits."""
    grey = image.mean(axis=2)
    centred = grey - grey.mean(dtype=np.float64)
    square = np.square(centred)
    deviation = float(np.sqrt(square.mean(dtype=np.float64)))
    skew = float((square * centred).mean(dtype=np.float64)) / deviation**3 if deviation > FLAT else 0.0
    return Range(*(round(float(value), 6) for value in (image.min(), image.max(), skew)))


def inspect(path: Path, root: Path, bits: Bits = "auto") -> Facts | str:
    """The facts of an image, `path` relative to `root`, or why it cannot be read; `bits` is `image.bits`."""
    try:
        header = images.header(
            path, root, bits
        )  # first: it looks at nothing outside the root, and its errors name no root
        pixels = images.read(path, root, bits)
        return Facts(manifest.digest(root / path), header, statistics(pixels), range_of(pixels))
    except (DataError, OSError) as error:
        return str(error)


def _sha256(path: Path, root: Path) -> str:
    """ "" where the file can't be read: `inspect` says why."""
    try:
        return manifest.digest(manifest.resolve(root, path.as_posix()))
    except (DataError, OSError):
        return ""


def _facts(sha256: str, values: Any) -> Facts:
    header, measured, reached = values
    return Facts(sha256, Header(*header), Statistics(*measured), Range(*reached))


def inspect_all(
    paths: Sequence[Path], root: Path, cache: Path | None = None, bits: Bits = "auto"
) -> Iterator[Facts | str]:
    """`inspect` in order, with threads, because decoding and numpy leave the interpreter free.

    What `cache` (of `kept.file`) knows by its sha256 and `bits` is hashed, not decoded. Whatever the number of paths,
    the facts of `CHUNK` images are in memory.
    """
    with ThreadPoolExecutor() as pool, kept.opened(cache) as store:
        for start in range(0, len(paths), CHUNK):
            some = paths[start : start + CHUNK]
            hashes = list(pool.map(_sha256, some, repeat(root)))
            keys = [f"{sha256} {bits}" for sha256 in hashes]
            known = store.find(keys)
            missing = [path for path, key in zip(some, keys, strict=True) if key not in known]
            new = dict(zip(missing, pool.map(inspect, missing, repeat(root), repeat(bits)), strict=True))
            good = [facts for facts in new.values() if isinstance(facts, Facts)]
            store.put(
                {f"{f.sha256} {bits}": (astuple(f.header), astuple(f.statistics), astuple(f.range)) for f in good}
            )
            for path, sha256, key in zip(some, hashes, keys, strict=True):
                yield new[path] if path in new else _facts(sha256, known[key])
