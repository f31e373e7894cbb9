"""Decode every image once: its header, hash and statistics, or the reason why it cannot be used."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from pvqae.datasets import images, manifest
from pvqae.datasets.images import Floats, Header
from pvqae.errors import DataError


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
        return Facts(manifest.digest(root / path), images.header(path, root), statistics(images.read(path, root)))
    except (DataError, OSError) as error:
        return str(error)


def inspect_all(paths: Sequence[Path], root: Path) -> Iterator[Facts | str]:
    """`inspect` in order; threads, because decoding and numpy leave the interpreter free."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(inspect, paths, repeat(root))
