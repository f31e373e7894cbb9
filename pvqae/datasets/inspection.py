"""Decode every image once: its header, hash and statistics, or the reason why it cannot be used."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from pvqae.datasets import images, kept, manifest
from pvqae.datasets.images import Floats, Header
from pvqae.errors import DataError

CHUNK = 1024  # images


@dataclass(frozen=True)
class Statistics:
    """Of the grey image in [0, 1]; sharpness is the mean absolute difference of neighbouring pixels."""

    mean: float
    std: float
    sharpness: float


@dataclass(frozen=True)
class Facts:
    """What one full decode says about a file."""

    sha256: str
    header: Header
    statistics: Statistics


def _sharpness(grey: Floats) -> float:
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1) if grey.shape[axis] > 1]
    return float(np.mean([step.mean(dtype=np.float64) for step in steps])) if steps else 0.0


def statistics(image: Floats) -> Statistics:
    """Statistics of an image (H0, W0, 3); six digits, so that their text is the same on every machine."""
    grey = image.mean(axis=2)
    values = grey.mean(dtype=np.float64), grey.std(dtype=np.float64), _sharpness(grey)
    return Statistics(*(round(float(value), 6) for value in values))


def inspect(path: Path, root: Path) -> Facts | str:
    """The facts of an image, `path` relative to `root`, or why it cannot be read."""
    try:
        header = images.header(path, root)  # first: it looks at nothing outside the root, and its errors name no root
        return Facts(manifest.digest(root / path), header, statistics(images.read(path, root)))
    except (DataError, OSError) as error:
        return str(error)


def _sha256(path: Path, root: Path) -> str:
    """ "" where the file can't be read: `inspect` says why."""
    try:
        return manifest.digest(manifest.resolve(root, path.as_posix()))
    except (DataError, OSError):
        return ""


def _facts(sha256: str, values: Any) -> Facts:
    header, measured = values
    return Facts(sha256, Header(*header), Statistics(*measured))


def inspect_all(paths: Sequence[Path], root: Path, cache: Path | None = None) -> Iterator[Facts | str]:
    """`inspect` in order, with threads, because decoding and numpy leave the interpreter free.

    What `cache` (of `kept.file`) knows by its sha256 is hashed, not decoded. Whatever the number of paths, the facts of
    `CHUNK` images are in memory.
    """
    with ThreadPoolExecutor() as pool, kept.opened(cache) as store:
        for start in range(0, len(paths), CHUNK):
            some = paths[start : start + CHUNK]
            hashes = list(pool.map(_sha256, some, repeat(root)))
            known = store.find(hashes)
            missing = [path for path, sha256 in zip(some, hashes, strict=True) if sha256 not in known]
            new = dict(zip(missing, pool.map(inspect, missing, repeat(root)), strict=True))
            good = [facts for facts in new.values() if isinstance(facts, Facts)]
            store.put({f.sha256: (astuple(f.header), astuple(f.statistics)) for f in good})
            for path, sha256 in zip(some, hashes, strict=True):
                yield new[path] if path in new else _facts(sha256, known[sha256])
