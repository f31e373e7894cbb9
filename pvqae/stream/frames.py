"""Where frames come from: cameras, network streams and video files through PyAV, folders and buckets that are watched.

A source yields all that it reads, also what can't be decoded, with the reason. One that was open once is opened again
for ever; each outage is told and counted. What an address says of people and passwords is never shown.
"""

import datetime
import hashlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from pvqae.core import files
from pvqae.core.errors import ConfigError, DataError, PvqaeError
from pvqae.samples import images
from pvqae.serving import batch_source
from pvqae.serving.batch_source import Item

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import InputContainer

Tell = Callable[[str], object]
EXTRA = "install pvqae[stream]"
_NETWORK = ("rtsp", "rtsps", "http", "https")
# What FFmpeg may open for an address: a playlist from elsewhere must not read files of this machine, nor a file ask a
# server.
_PROTOCOLS = {"file": "file", "network": "rtsp,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto"}
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,mjpeg,mpjpeg,ogg,flv,live_flv,asf,gif,nut,ivf,"
    "h264,hevc,m4v,dv,mxf,wtv,yuv4mpegpipe"
)
_MAX_PIXELS = 80_000_000  # of a frame, as of an image file
_TIMEOUT = 10.0  # seconds without a byte after which a network stream counts as broken
_DELAYS = (1.0, 30.0)  # seconds before the first attempt to open again, and at most between two
_TRIES = 3  # looks at which an object of a bucket may fail to arrive before it is a row with the reason
_SETTLED = 2.0  # seconds since its last change after which a file is whole, else it has to be the same at two looks


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source: `pixels` (H0, W0, 3), 0 to 255 or in [0, 1]; None where `error` says why not."""

    number: int  # in this run of the source, from 0
    path: str  # for people: the file, or the source and the number
    pixels: NDArray[np.uint8] | images.Floats | None
    taken: str = ""  # ISO 8601, "" where nothing says when
    seconds: float | None = None  # since the start of the video
    sha256: str = ""  # of the image or video file
    identity: str = ""  # of a watched image: changes with its content
    error: str = ""

    @property
    def floats(self) -> images.Floats:
        """The pixels in [0, 1], by the same division as those of an image file."""
        assert self.pixels is not None
        if self.pixels.dtype != np.uint8:
            return self.pixels.astype(np.float32, copy=False)
        return np.divide(self.pixels, np.float32(255), dtype=np.float32)


@dataclass
class Counts:
    """What became of frames; `read` of them came from the source. Each number has one thread that changes it."""

    read: int = 0
    skipped: int = 0  # by --every and --rate
    known: int = 0  # scored by an earlier run
    dropped: int = 0  # the queue was full
    scored: int = 0
    alarms: int = 0
    failed: int = 0  # could not be decoded or scored
    left: int = 0  # in the queue when the run was stopped
    reconnects: int = 0


@dataclass(frozen=True)
class Known:
    """What an earlier run with the same bundle has scored: keys of watched images, the last frame of each video."""

    keys: set[bytes] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=dict)  # sha256 of a video file → number

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row of a stream's scores.jsonl; other rows say nothing here."""
        number, sha256 = row.get("frame"), row.get("sha256")
        if row.get("identity"):
            self.keys.add(key_of(str(row["path"]), str(row["identity"])))
        elif isinstance(number, int) and isinstance(sha256, str) and sha256:
            self.last[sha256] = max(number, self.last.get(sha256, -1))


def key_of(path: str, identity: str) -> bytes:
    """Return 16 bytes that stand for an image and its content."""
    return hashlib.blake2b(f"{path}\0{identity}".encode(), digest_size=16).digest()


class Frames(Protocol):
    """A source. `live` ones do not wait: what is not read is lost."""

    @property
    def name(self) -> str: ...
    @property
    def live(self) -> bool: ...
    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until the source ends or `stop` is set. Raises `PvqaeError` if it never opens or holds none."""
        ...


@dataclass
class _Outage:
    """Says that a source does not answer, waits longer each time, and says when it is back."""

    name: str
    tell: Tell
    counts: Counts
    patience: float  # seconds without any first frame after which the source is given up
    delays: tuple[float, float] = _DELAYS
    _begun: float = field(default_factory=time.monotonic)
    _since: float | None = None
    _delay: float = 0.0
    ever: bool = False  # a frame came, or a look succeeded

    def over(self) -> None:
        """Note that a frame came."""
        if self._since is not None and self.ever:
            self.counts.reconnects += 1
            self.tell(f"{self.name}: back after {time.monotonic() - self._since:.0f} s")
        self._since, self.ever, self._delay = None, True, 0.0

    def check(self, reason: str) -> None:
        """Raise `DataError` where there was never a frame within the patience."""
        if not self.ever and time.monotonic() - self._begun >= self.patience:
            raise DataError(
                f"{self.name}: no frame within {self.patience:g} s, the last time: {reason}; see that the address is "
                "right, that the camera runs and that nobody else uses it"
            )

    def wait(self, reason: str, stop: threading.Event) -> None:
        """Wait before the next attempt. Raises as `check`."""
        self.check(reason)
        if self._since is None:
            self._since = time.monotonic()
            self.tell(f"{self.name}: {reason}; it is opened again, at most every {self.delays[1]:g} s")
        self._delay = min(self.delays[1], max(self.delays[0], self._delay * 2))
        stop.wait(self._delay)


@dataclass
class Video:
    """A camera, a network stream or a video file. Of `every` frames one is scored, at most `rate` a second (0: all)."""

    address: str  # as FFmpeg takes it
    name: str  # without secrets
    counts: Counts
    tell: Tell
    form: str | None = None  # FFmpeg's name of a device's format
    sha256: str = ""  # of a file; "" for a stream
    every: int = 1
    rate: float = 0.0
    patience: float = 30.0
    options: Mapping[str, str] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    timeout: float = _TIMEOUT
    delays: tuple[float, float] = _DELAYS
    _number: int = 0  # of the next frame
    _due: float = float("-inf")  # seconds: no frame before is scored
    _decoded: int = 0
    _finite: bool = False  # a file, or a stream that says how long it is
    _last: float | None = None  # seconds: when the last decoded frame is shown

    @property
    def live(self) -> bool:
        return not self._local and not self._finite

    @property
    def _local(self) -> bool:
        return bool(self.sha256)

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        import av

        outage = _Outage(self.name, self.tell, self.counts, self.patience, self.delays)
        while not stop.is_set():
            try:
                with closing(self._open()) as container:
                    self._finite = self._local or container.duration is not None
                    yield from self._read(container, stop, outage)
                    if not stop.is_set() and (missing := self._missing(container)):
                        yield self._failed(missing)
                reason = "the stream ended"
            except av.FFmpegError as error:  # its text has the address, and so the password
                reason = error.strerror or type(error).__name__
                if self._local and self._number == 0:
                    raise self._no_video(reason) from None
                if not self.live:
                    yield self._failed(f"the video can't be read further: {reason}")
            if not self.live:
                self._check_not_empty()
                return
            if not stop.is_set():
                outage.wait(reason, stop)

    def _open(self) -> "InputContainer":
        import av

        options = {"protocol_whitelist": _PROTOCOLS["file" if self._local else "network"]}
        if self.address.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # UDP loses packets, and with them frames
        if self._local:
            options["format_whitelist"] = _CONTAINERS
        if self.form:
            del options["protocol_whitelist"]
        limit = None if self._local else (self.timeout, self.timeout)
        return av.open(self.address, format=self.form, options=options | dict(self.options), timeout=limit)

    def _read(self, container: "InputContainer", stop: threading.Event, outage: _Outage) -> Iterator[Frame]:
        import av

        if not container.streams.video:
            raise DataError(f"{self.name}: expected a video, found none in it, only other streams; correct the source")
        stream = container.streams.video[0]
        # A frame of which a part is missing is an error: it would be scored as a defect.
        stream.codec_context.options = {"err_detect": "crccheck+explode", "max_pixels": str(_MAX_PIXELS)}
        whole = True  # since the last picture that stands on its own
        fresh = True  # a stream is entered anywhere: what comes before its first whole picture is no failure
        for packet in _packets(container, stream):
            if stop.is_set():
                return
            whole = whole and not packet.is_corrupt
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                reason = f"expected a whole frame, found: {error.strerror or type(error).__name__}"
                if fresh and self.live:
                    outage.check(reason)
                else:
                    yield self._failed(reason)
                continue
            for one in decoded:
                fresh, whole = False, whole or (one.key_frame and not packet.is_corrupt)
                outage.over()
                if (frame := self._frame(one, whole)) is not None:
                    yield frame

    def _missing(self, container: "InputContainer") -> str:
        """Return what a file lacks that says how long it is, "" where nothing: FFmpeg takes a cut one for its end."""
        stream = container.streams.video[0]
        if stream.duration is not None and stream.time_base is not None:
            length = float(stream.duration * stream.time_base)
        elif container.duration is not None and len(container.streams) == 1:  # of the longest of all streams
            length = container.duration / 1e6
        else:
            return ""
        start = (container.start_time or 0) / 1e6
        rate = float(stream.average_rate or 0)
        if not self._local or self._last is None or not rate:
            return ""
        found = self._last - start + 1 / rate
        if found > length * 0.99 - 2 / rate:  # the length of a file is rounded, and its last frame may be short
            return ""
        return f"expected {length:.1f} s of video, found {found:.1f} s: the file is cut off; copy it again"

    def _frame(self, found: Any, whole: bool) -> Frame | None:
        """Return a decoded frame as it is scored; None for one that is left out. `whole`: nothing it needs is lost."""
        number, self._number = self._number, self._number + 1
        self._decoded += 1
        self.counts.read += 1
        if number <= self.known.last.get(self.sha256, -1):
            self.counts.known += 1
            return None
        seconds = float(found.time) if found.time is not None else None
        self._last = seconds if self._last is None or seconds is None else max(self._last, seconds)
        if number % self.every or not self._is_due(seconds):
            self.counts.skipped += 1
            return None
        about = self._about(number)
        if found.is_corrupt or not whole:
            return Frame(**about, seconds=seconds, pixels=None, error="expected a whole frame, found a damaged one")
        return Frame(**about, seconds=seconds, pixels=found.to_ndarray(format="rgb24"))

    def _is_due(self, seconds: float | None) -> bool:
        if not self.rate:
            return True
        moment = time.monotonic() if self.live or seconds is None else seconds
        if moment + 1e-6 < self._due:
            return False
        late = moment - self._due > 1 / self.rate  # the first one, or after an outage: not made up for
        self._due = (moment if late else self._due) + 1 / self.rate
        return True

    def _about(self, number: int) -> dict[str, Any]:
        path = f"{self.name}#{number:08}"
        return {"number": number, "path": path, "taken": now() if self.live else "", "sha256": self.sha256}

    def _failed(self, reason: str) -> Frame:
        number, self._number = self._number, self._number + 1
        self.counts.read += 1
        return Frame(**self._about(number), pixels=None, error=reason)

    def _no_video(self, reason: str) -> DataError:
        return DataError(
            f"{self.name}: expected a video, found: {reason}; correct the path, or convert the file (images are for "
            "`pvqae score`, a folder of them is watched)"
        )

    def _check_not_empty(self) -> None:
        if not self._decoded:
            raise DataError(f"{self.name}: expected frames, found a video without any; record it again")


@dataclass
class Watched:
    """Images that arrive in a folder or a bucket; looked at every `poll` seconds, each taken once it is whole."""

    source: batch_source.Source
    name: str
    counts: Counts
    tell: Tell
    bits: images.Bits = "auto"
    poll: float = 1.0
    known: Known = field(default_factory=Known)
    delays: tuple[float, float] = _DELAYS
    live: bool = False  # what is not read yet stays where it is
    _number: int = 0
    _growing: dict[str, str] = field(default_factory=dict)  # path → identity at the last look
    _tries: dict[str, int] = field(default_factory=dict)  # path → how often it did not arrive

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        outage = _Outage(self.name, self.tell, self.counts, 0.0, self.delays)
        with tempfile.TemporaryDirectory(prefix="pvqae-") as scratch:
            while not stop.is_set():
                try:
                    yield from self._look(stop, Path(scratch))
                    outage.over()
                except (PvqaeError, OSError) as error:
                    if not outage.ever:
                        raise
                    outage.wait(str(error), stop)
                stop.wait(self.poll)

    def _look(self, stop: threading.Event, scratch: Path) -> Iterator[Frame]:
        growing: dict[str, str] = {}
        for item in self.source.items():
            if stop.is_set():
                return
            identity, whole = self._identity(item)
            if (key := key_of(item.path, identity)) in self.known.keys:
                continue
            if not whole and self._growing.get(item.path) != identity:
                growing[item.path] = identity
                continue
            frame = self._frame(item, identity, scratch)
            if frame is not None:
                self.known.keys.add(key)
                yield frame
        self._growing = growing

    @staticmethod
    def _identity(item: Item) -> tuple[str, bool]:
        """Return what changes with the content, and whether nobody writes it any more."""
        if item.identity:
            return item.identity, True
        try:
            found = Path(item.path).stat()
        except OSError:  # `file` says what is wrong
            return "gone", True
        return f"{found.st_mtime_ns} {found.st_size}", time.time() - found.st_mtime > _SETTLED

    def _frame(self, item: Item, identity: str, scratch: Path) -> Frame | None:
        """Return an image as a frame; None for one that did not arrive and is fetched again at the next looks."""
        try:
            file = self.source.file(item, scratch)
            self._tries.pop(item.path, None)
        except (PvqaeError, OSError) as error:
            tries = self._tries[item.path] = self._tries.get(item.path, 0) + 1
            if item.identity and tries < _TRIES:
                return None
            del self._tries[item.path]
            return self._next(item, identity, "", None, item.modified, str(error))
        sha256 = ""
        try:
            sha256 = files.digest(file)
            pixels, captured = batch_source.read(file, self.bits)
            return self._next(item, identity, sha256, pixels, captured or item.modified)
        except (PvqaeError, OSError) as error:
            return self._next(item, identity, sha256, None, item.modified, str(error))
        finally:
            if scratch in file.parents:
                file.unlink(missing_ok=True)

    def _next(
        self, item: Item, identity: str, sha256: str, pixels: images.Floats | None, taken: str, error: str = ""
    ) -> Frame:
        number, self._number = self._number, self._number + 1
        self.counts.read += 1
        return Frame(number, item.path, pixels, taken, None, sha256, identity, error)


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet[VideoStream]]":
    """Yield the packets of one stream, past those of streams that damaged bytes announce: PyAV does not know them."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            continue


def now() -> str:
    """Return the time in UTC with milliseconds, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")


def shown(address: str) -> str:
    """Return an address without the user, the password and the query, all of which may be secret."""
    if "://" not in address:
        return files.shown(address)
    parts = urlsplit(address)
    place = parts.netloc.rpartition("@")[2]
    if "@" in parts.path:  # of a password with a slash: nobody knows where it ends
        return f"{parts.scheme}://…"
    return files.shown(f"{parts.scheme}://{place}{parts.path}" + "?…" * bool(parts.query or parts.fragment))


def of(
    address: str, counts: Counts, tell: Tell, *, known: Known, bits: images.Bits = "auto", every: int = 1,
    rate: float = 0.0, poll: float = 1.0, patience: float = 30.0, options: Mapping[str, str] | None = None,
) -> Video | Watched:  # fmt: skip
    """Return the source that an address names: a camera's number, an RTSP or HTTP address, a video file, a folder.

    Raises `ConfigError` for another address or without PyAV, `DataError` where there is no such file.
    """
    more: dict[str, Any] = {"every": every, "rate": rate, "patience": patience, "options": options or {}}
    more |= {"known": known, "counts": counts, "tell": tell}
    if address.isdecimal():
        _check_installed()
        place, form = _camera(int(address))
        return Video(place, f"camera {int(address)}", form=form, **more)
    if "://" in address:
        if urlsplit(address).scheme.lower() not in _NETWORK:
            raise ConfigError(
                f"{shown(address)}: expected a camera's number, rtsp://, http://, a video file or a folder; buckets "
                "(s3://) are for `python -m flows stream`"
            )
        _check_installed()
        return Video(address, shown(address), **more)
    path = Path(address).expanduser()
    if path.is_dir():
        return watched(batch_source.Files((path,)), files.shown(address), counts, tell, known, bits, poll, every, rate)
    if not path.is_file():
        raise DataError(f"{files.shown(address)}: expected a video or a folder of images, found none; correct the path")
    _check_installed()
    sha256 = files.digest(path)
    return Video(str(path.resolve()), files.shown(address), sha256=sha256, **more)


def watched(
    source: batch_source.Source, name: str, counts: Counts, tell: Tell, known: Known, bits: images.Bits, poll: float,
    every: int = 1, rate: float = 0.0,
) -> Watched:  # fmt: skip
    """Return a watched source. Raises `ConfigError` where some of its images would be left out."""
    if every > 1 or rate:
        raise ConfigError(f"{name}: every image that arrives is scored; --every and --rate are for videos and cameras")
    return Watched(source, name, counts, tell, bits, poll, known)


def _camera(number: int) -> tuple[str, str]:
    """Return what FFmpeg calls a camera of this machine, and its kind."""
    if sys.platform == "linux":
        return f"/dev/video{number}", "v4l2"
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    raise ConfigError(f"camera {number}: cameras by number are for Linux and macOS; give the camera's RTSP address")


def _check_installed() -> None:
    try:
        import av
    except ImportError:
        raise ConfigError(f"stream: the package av, which decodes videos, is missing; {EXTRA}") from None
    av.logging.set_level(None)  # FFmpeg's lines have addresses with their passwords
