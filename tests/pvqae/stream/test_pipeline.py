"""Two threads and a queue between them: what is dropped is counted, what fails is raised, signals end it."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pvqae.core.errors import ConfigError, DataError
from pvqae.inference.bundle import Detector
from pvqae.stream import pipeline
from pvqae.stream.frames import Counts, Frame
from pvqae.stream.sinks import Result
from tests.pvqae.stream.conftest import Run


class Fast:
    """Gives `many` frames at once; the first has to be taken before the others come."""

    name = "fast"

    def __init__(self, counts: Counts, run: Run, picture: np.ndarray, many: int, live: bool) -> None:
        self.counts, self.run, self.picture, self.many, self.live = counts, run, picture, many, live
        self.done = threading.Event()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        for number in range(self.many):
            self.counts.read += 1
            yield Frame(number, f"fast#{number}", self.picture)
            if number == 0:
                self.run.taken.wait(20)  # type: ignore[attr-defined]
        self.done.set()


class Slow(Run):
    """Takes the first result only once all frames came, unless the queue makes them wait."""

    patience = 20.0

    def put(self, result: Result) -> None:
        super().put(result)
        if len(self.results) == 1:
            self.taken.set()  # type: ignore[attr-defined]
            self.source.done.wait(self.patience)  # type: ignore[attr-defined]


def through(detector: Detector, picture: np.ndarray, drop: str, live: bool, many: int = 8) -> Run:
    run = Slow()
    run.taken = threading.Event()  # type: ignore[attr-defined]
    run.source = Fast(run.counts, run, picture, many, live)  # type: ignore[attr-defined]
    settings = pipeline.Settings(queue=3, drop=drop)
    if settings.policy(live) == "none":
        run.patience = 0.4
    pipeline.run(detector, run.source, run.counts, [run], settings, run.said.append, run.stop)  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize(
    ("drop", "live", "numbers"),
    [
        ("oldest", False, [0, 5, 6, 7]),
        ("", True, [0, 5, 6, 7]),
        ("newest", True, [0, 1, 2, 3]),
        ("none", True, list(range(8))),
        ("", False, list(range(8))),
    ],
)
def test_the_policy_says_what_is_dropped(
    detector: Detector, pictures: list[np.ndarray], drop: str, live: bool, numbers: list[int]
) -> None:
    run = through(detector, pictures[0], drop, live)
    assert [row["frame"] for row in run.rows] == numbers
    assert run.counts.dropped == 8 - len(numbers)
    assert run.counts.read == run.counts.scored + run.counts.dropped == 8
    assert run.rows[-1]["dropped"] == run.counts.dropped
    assert f"{run.counts.dropped} dropped" in pipeline.sentence(run.counts)


def test_another_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="--drop: expected oldest, newest, none"):
        pipeline.Settings(drop="some").policy(True)


def test_an_error_of_the_source_comes_after_its_frames(detector: Detector, pictures: list[np.ndarray]) -> None:
    class Broken:
        name, live = "broken", False

        def frames(self, stop: threading.Event) -> Iterator[Frame]:
            yield Frame(0, "broken#0", pictures[0])
            raise DataError("it broke")

    run = Run()
    with pytest.raises(DataError, match="it broke"):
        pipeline.run(detector, Broken(), run.counts, [run], pipeline.Settings(), print, run.stop)
    assert run.counts.scored == 1


def test_frames_that_can_t_be_scored_are_rows(detector: Detector, pictures: list[np.ndarray]) -> None:
    class Odd:
        name, live = "odd", False

        def frames(self, stop: threading.Event) -> Iterator[Frame]:
            yield Frame(0, "odd#0", pictures[0][:4, :4])
            yield Frame(1, "odd#1", None, error="torn")
            yield Frame(2, "odd#2", pictures[0])

    run = Run()
    pipeline.run(detector, Odd(), run.counts, [run], pipeline.Settings(), print, run.stop)
    assert [bool(row["error"]) for row in run.rows] == [True, True, False]
    assert [row["decision"] for row in run.rows] == ["", "", "normal"]
    assert (run.counts.scored, run.counts.failed) == (1, 2)


def test_a_source_that_waits_ends_when_it_is_stopped(detector: Detector) -> None:
    class Waiting:
        name, live = "waiting", True

        def frames(self, stop: threading.Event) -> Iterator[Frame]:
            stop.wait()
            yield from ()

    run = Run()
    threading.Timer(0.1, run.stop.set).start()
    start = time.monotonic()
    pipeline.run(detector, Waiting(), run.counts, [run], pipeline.Settings(), print, run.stop)
    assert time.monotonic() - start < 3
