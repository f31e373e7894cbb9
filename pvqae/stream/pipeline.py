"""From frames to results: one thread reads and decodes, this one scores, a queue of a stated length between them.

Where scoring can't keep up, the queue's policy decides what is not scored; it is counted in every row from then on.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pvqae.core.errors import ConfigError
from pvqae.inference.bundle import Detector
from pvqae.serving import batch
from pvqae.stream.frames import Counts, Frame, Frames, Tell, now
from pvqae.stream.sinks import Result, Sink

Drop = Literal["oldest", "newest", "none"]
DROPS: tuple[Drop, ...] = ("oldest", "newest", "none")
_QUIET = 10.0  # seconds between two lines on how far it is
_WAIT = 0.5  # seconds after which a signal is looked at


class FrameQueue:
    """At most `size` frames between the two threads; `counts.dropped` has what found no place.

    `policy` is asked for each frame: only an open stream says whether it waits for its reader.
    """

    def __init__(self, size: int, policy: Callable[[], Drop], counts: Counts) -> None:
        self._size, self._policy, self._counts = size, policy, counts
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, frame: Frame, stop: threading.Event) -> None:
        """Add a frame, or drop one; with the policy `none` wait for a place."""
        drop = self._policy()
        with self._changed:
            while len(self._frames) >= self._size and drop == "none" and not stop.is_set():
                self._changed.wait(_WAIT)
            if len(self._frames) >= self._size and drop != "none":
                self._counts.dropped += 1
                if drop == "newest":
                    return
                self._frames.popleft()
            self._frames.append(frame)
            self._changed.notify_all()

    def get(self, stop: threading.Event, idle: Callable[[], None] = lambda: None) -> Frame | None:
        """Return the next frame; None at the end or when `stop` is set. Raises the reader's error.

        `idle` is called now and then while nothing comes.
        """
        while not stop.is_set():
            with self._changed:
                if self._frames or self._ended or self._changed.wait(_WAIT):
                    if self._frames:
                        self._changed.notify_all()
                        return self._frames.popleft()
                    if self._error:
                        raise self._error
                    if self._ended:
                        return None
            idle()
        return None

    def end(self, error: BaseException | None = None) -> None:
        """Note that no frame comes after those that wait."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._frames)


@dataclass(frozen=True)
class Settings:
    """Length of the queue, what is dropped ("": none for files and folders, else the oldest), frames to end after."""

    queue: int = 8
    drop: str = ""
    limit: int = 0  # 0: none

    def policy(self, live: bool) -> Drop:
        """Return the policy. Raises `ConfigError` for a name that is none."""
        named = self.drop or ("oldest" if live else "none")
        for one in DROPS:
            if one == named:
                return one
        raise ConfigError(f"--drop: expected {', '.join(DROPS)}, found {named!r}")


def run(
    detector: Detector, source: Frames, counts: Counts, sinks: Sequence[Sink], settings: Settings, tell: Tell,
    stop: threading.Event, version: str = "",
) -> None:  # fmt: skip
    """Score frames until the source ends, `settings.limit` frames are scored, or `stop` is set.

    Raises what the source raises: `DataError` if it never opens or has no frame. Sinks stay open.
    """
    queue = FrameQueue(settings.queue, lambda: settings.policy(source.live), counts)
    halt = threading.Event()  # of the reader: also at the limit
    reader = threading.Thread(target=_fill, args=(source, queue, halt), name="frames", daemon=True)
    telling = _Telling(source.name, counts, tell)
    reader.start()
    try:
        while (frame := queue.get(stop, telling.look)) is not None:
            result = _scored(detector, frame, version, source.name, counts)
            for sink in sinks:
                sink.put(result)
            telling.look()
            if settings.limit and counts.scored + counts.failed >= settings.limit:
                break
    finally:
        halt.set()
        reader.join(2 * _WAIT)  # one that waits for a camera ends with the process
        counts.left = len(queue)


def _fill(source: Frames, queue: FrameQueue, halt: threading.Event) -> None:
    try:
        for frame in source.frames(halt):
            if halt.is_set():
                break
            queue.put(frame, halt)
    except BaseException as error:  # it is raised where the frames are taken
        queue.end(error)
    else:
        queue.end()


def _scored(detector: Detector, frame: Frame, version: str, name: str, counts: Counts) -> Result:
    if frame.error:
        row, scored = batch.unscored(detector, frame.path, frame.error, frame.taken, version), None
    else:
        row, scored = batch.of_pixels(detector, frame.floats, frame.path, frame.taken, version)
    counts.failed += scored is None
    counts.scored += scored is not None
    counts.alarms += row["decision"] == "defect"
    about = {"time": now(), "source": name, "frame": frame.number, "seconds": frame.seconds, "sha256": frame.sha256}
    return Result({**row, **about, "identity": frame.identity, "dropped": counts.dropped}, frame, scored)


class _Telling:
    """Says how far it is whenever nothing was said for a while."""

    def __init__(self, name: str, counts: Counts, tell: Tell) -> None:
        self._name, self._counts, self._tell = name, counts, tell
        self._spoken, self._before = time.monotonic(), 0

    def look(self) -> None:
        elapsed = time.monotonic() - self._spoken
        if elapsed < _QUIET:
            return
        done = self._counts.scored + self._counts.failed
        rate = (done - self._before) / elapsed
        self._tell(f"{self._name}: {sentence(self._counts)}; {rate:.1f} a second")
        self._spoken, self._before = time.monotonic(), done


def sentence(counts: Counts) -> str:
    """Return the numbers in words; what is zero by the nature of the run is left out."""
    words = f"{counts.read} frames read, {counts.scored} scored, {counts.alarms} alarms, {counts.dropped} dropped"
    more = {"not scored (their rows say why)": counts.failed, "known from before": counts.known}
    more |= {"left out by --every or --rate": counts.skipped, "waiting when it was stopped": counts.left}
    more |= {"reconnects": counts.reconnects}
    return ", ".join([words, *(f"{number} {text}" for text, number in more.items() if number)])


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[list[int]]:
    """Set `stop` at SIGTERM or Ctrl-C, and yield the list of what came; a second Ctrl-C ends at once."""
    came: list[int] = []

    def handle(number: int, _: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
