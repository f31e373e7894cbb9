"""A small bundle, frames it was fitted to and others, and a run of a stream in this process."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pvqae.core import config
from pvqae.inference import bundle as bundles
from pvqae.inference.bundle import Detector
from pvqae.inference.scoring import Scorer
from pvqae.stream import frames, pipeline, sinks
from pvqae.stream.frames import Counts
from pvqae.stream.sinks import Result
from tests.pvqae.conftest import Picture

PARAMS = config.Params(
    data=config.Data(name="tiny"),
    image=config.Image(size=128),
    model=config.Model(width=8, code_dim=4, codes=16),
    prior=config.Prior(width=16),
)
CARD = {"threshold": 100.0, "map_threshold": 2.0, "map_scale": [0.0, 4.0], "pixel": {"threshold": 50.0}}


@pytest.fixture(scope="session")
def bundle(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Threshold 100: `pictures[1]` is above it. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("stream") / "bundle"
    bundles.save(folder, scorer, PARAMS, "sheet", {"warnings": []}, CARD)
    return folder


@pytest.fixture(scope="session")
def detector(bundle: Path) -> Detector:
    return bundles.load(bundle)


@pytest.fixture(scope="session")
def pictures(picture: Picture) -> list[np.ndarray]:
    """Five normal ones, the second with a hole, 0 to 255."""
    found = [picture(seed) for seed in range(30, 35)]
    found[1][40:70, 50:90] = 0.02
    return [(x * 255).round().astype(np.uint8) for x in found]


@dataclass
class Run:
    """What a stream came to."""

    counts: Counts = field(default_factory=Counts)
    said: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    failed: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [result.row for result in self.results]

    def put(self, result: Result) -> None:
        self.results.append(result)

    def close(self) -> None: ...


@pytest.fixture
def streamed(detector: Detector) -> Callable[..., Run]:
    """`streamed(address, limit=0, **options of frames.of)`; `out` is a folder for the lines, `sinks` more sinks."""

    def start(
        address: str, *, run: Run | None = None, limit: int = 0, drop: str = "", queue: int = 8,
        out: Path | None = None, more: Sequence[sinks.Sink] = (), delays: tuple[float, float] = (0.02, 0.1),
        timeout: float = 20.0, **options: Any,
    ) -> Run:  # fmt: skip
        run = run or Run()
        lines = sinks.Lines(out, run.said.append) if out else None
        known = lines.known(detector.sha256) if lines else frames.Known()
        source = frames.of(address, run.counts, run.said.append, known=known, **options)
        source = replace(source, delays=delays, **({"timeout": timeout} if isinstance(source, frames.Video) else {}))
        every: list[Any] = [*([lines] if lines else []), run, *more]
        try:
            pipeline.run(
                detector, source, run.counts, every, pipeline.Settings(queue, drop, limit), run.said.append, run.stop
            )
        finally:
            if lines:
                lines.close()
        return run

    return start
