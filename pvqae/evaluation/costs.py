"""What a detector costs: seconds, megabytes, milliseconds per image."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from pvqae import config
from pvqae.datasets.images import Bits, Floats, read
from pvqae.inference import bundle
from pvqae.inference.scoring import Scorer

REPEATS = 5


def megabytes(scorer: Scorer, params: config.Params, health: dict[str, Any]) -> float:
    """Size of the bundle on disk, millions of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        bundle.save(place, scorer, params, "trial", health, {})
        return round(sum(file.stat().st_size for file in place.iterdir()) / 1e6, 3)


def milliseconds(
    score: Callable[[Floats], object], rows: pd.DataFrame, data_root: Path, bits: Bits, repeats: int = REPEATS
) -> float:
    """Median from a file to its score, over the first `repeats` images, after one warm-up."""
    score(read(rows["path"].iloc[0], data_root, bits))
    times = []
    for path in rows["path"].iloc[:repeats]:
        begun = time.perf_counter()
        score(read(path, data_root, bits))
        times.append((time.perf_counter() - begun) * 1000)
    return round(median(times), 2)


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now
