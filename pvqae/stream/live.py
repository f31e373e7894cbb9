"""A page that shows a stream as it runs: the last frames, alarms, rates, the trend of the scores."""

import base64
import binascii
import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pvqae.core.config import Service
from pvqae.inference.bundle import Detector
from pvqae.report import pictures
from pvqae.report.svg import short
from pvqae.serving import batch, server
from pvqae.serving.middleware import HEADERS, as_get, names_this_machine
from pvqae.stream.frames import Counts
from pvqae.stream.sinks import Result

_FILES = Path(__file__).parent / "page"
_SHOWN, _TREND = 8, 300  # frames, and as many alarms, and scores that the page shows
_HELD = 3 * _SHOWN  # pictures: a browser asks for those of a page that is older by then
_FEW = 60  # scores across the trend while there are fewer
_DRAW = 0.5  # seconds between two pictures of frames without an alarm
_WINDOW = 30.0  # seconds over which a rate is taken
_WIDTH, _HEIGHT = 960, 220  # of the trend, in SVG units
_HEADERS: Mapping[str, str] = {
    **HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}


@dataclass(frozen=True, eq=False)
class _Picture:
    """A frame on the page."""

    number: int
    when: str
    score: float | None
    alarm: bool
    regions: int | None
    error: str
    webp: bytes


@dataclass
class Board:
    """What the page shows; a sink like the others. The thread that scores writes, that of the page reads."""

    detector: Detector
    title: str
    source: str
    counts: Counts
    failed: int = 0
    _frames: "deque[_Picture]" = field(default_factory=lambda: deque(maxlen=_HELD))
    _alarms: "deque[_Picture]" = field(default_factory=lambda: deque(maxlen=_HELD))
    _scores: "deque[tuple[int, float, bool]]" = field(default_factory=lambda: deque(maxlen=_TREND))
    _times: "deque[float]" = field(default_factory=lambda: deque(maxlen=10_000))
    _drawn: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, result: Result) -> None:
        moment = time.monotonic()
        draw = result.scored is not None and (result.alarm or moment - self._drawn >= _DRAW)
        picture = self._picture(result) if draw else None
        with self._lock:
            self._times.append(moment)
            if result.scored is not None:
                self._scores.append((result.frame.number, result.scored.image_score, result.alarm))
            if picture:
                self._drawn = moment
                self._frames.append(picture)
                if picture.alarm:
                    self._alarms.append(picture)

    def _picture(self, result: Result) -> _Picture:
        row = result.row
        assert result.scored is not None
        webp = pictures.webp(batch.heatmap(self.detector, result.scored))
        number, when = result.frame.number, row["time"]
        return _Picture(number, when, row["score"], result.alarm, row["region_count"], row["error"], webp)

    def close(self) -> None: ...

    def said(self) -> str:
        return ""

    def webp(self, number: int) -> bytes | None:
        """Return the picture of a frame that the page holds."""
        with self._lock:
            return next((one.webp for one in (*self._frames, *self._alarms) if one.number == number), None)

    def rate(self) -> float:
        """Return the frames per second of the last half minute."""
        end = time.monotonic()
        with self._lock:
            recent = [moment for moment in self._times if end - moment <= _WINDOW]
        return len(recent) / max(1.0, end - recent[0]) if recent else 0.0

    def state(self) -> dict[str, Any]:
        """Return what the page says, as values."""
        with self._lock:
            frames, alarms = list(self._frames)[-_SHOWN:], list(self._alarms)[-_SHOWN:]
            scores = list(self._scores)
            last = self._times[-1] if self._times else None
        return {
            "title": self.title,
            "source": self.source,
            "threshold": self.detector.threshold,
            "rate": self.rate(),
            "silent": None if last is None else time.monotonic() - last,
            "counts": asdict(self.counts),
            "frames": frames[::-1],
            "alarms": alarms[::-1],
            "scores": scores,
        }


def trend(scores: list[tuple[int, float, bool]], threshold: float) -> dict[str, Any]:
    """Return the SVG coordinates of scores, newest at the right, with the line of the threshold."""
    values = [score for _, score, _ in scores]
    low, high = min([0.0, threshold, *values]), max([threshold, *values]) or 1.0
    span = (high - low) * 1.08 or 1.0
    step = _WIDTH / max(_FEW, len(scores) - 1)

    def place(index: int, score: float) -> tuple[float, float]:
        x = _WIDTH - (len(scores) - 1 - index) * step
        return round(x, 1), round(_HEIGHT - (score - low) / span * _HEIGHT, 1)

    points = [place(index, score) for index, score in enumerate(values)]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "line": " ".join(f"{x},{y}" for x, y in points),
        "alarms": [point for point, (_, _, alarm) in zip(points, scores, strict=True) if alarm],
        "cut": place(0, threshold)[1],
        "top": place(0, high)[1],
        "high": short(high),
        "last": scores[-1][0] if scores else None,
    }


def make(board: Board, token: str = "", seconds: float = 2.0) -> ASGIApp:
    """Make the ASGI app: the page, its pictures, /state.json. With a `token` it asks for it as a password."""
    app = FastAPI(title="pvqae stream", docs_url=None, redoc_url=None, openapi_url=None)
    environment = Environment(loader=FileSystemLoader(_FILES), autoescape=True, undefined=StrictUndefined)
    environment.filters["short"] = short

    @app.get("/")
    def index() -> HTMLResponse:
        state = board.state()
        drawn = trend(state["scores"], state["threshold"])
        return HTMLResponse(environment.get_template("live.html.j2").render(**state, trend=drawn, seconds=seconds))

    @app.get("/live.css")
    def style() -> FileResponse:
        return FileResponse(_FILES / "live.css", media_type="text/css; charset=utf-8")

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/state.json")
    def state() -> JSONResponse:
        found = board.state()
        for key in ("frames", "alarms"):
            found[key] = [{k: v for k, v in asdict(one).items() if k != "webp"} for one in found[key]]
        return JSONResponse(found)

    @app.get("/picture/{number}.webp")
    def picture(number: int) -> Response:
        data = board.webp(number)
        return Response(data, media_type="image/webp") if data else PlainTextResponse("no longer shown", 404)

    return _Guarded(app, token)


@dataclass(frozen=True)
class _Guarded:
    """Serves this machine alone, or whoever has the token as the password of HTTP's basic authentication."""

    app: ASGIApp
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, send = as_get(scope, send)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await (self._refusal(Headers(scope=scope)) or self.app)(scope, receive, sending)

    def _refusal(self, headers: Headers) -> Response | None:
        if not self.token:
            if names_this_machine(headers.get("host", "")):
                return None
            # A page elsewhere may let its own name point to this machine; it can't choose this header.
            return PlainTextResponse("this page is served to this machine only; the request names another host", 421)
        if hmac.compare_digest(_password(headers.get("authorization", "")).encode(), self.token.encode()):
            return None
        return PlainTextResponse(
            "expected the token as the password, with any user name", 401, {"WWW-Authenticate": 'Basic realm="pvqae"'}
        )


def _password(header: str) -> str:
    kind, _, given = header.partition(" ")
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2] if kind.lower() == "basic" else ""
    except (binascii.Error, ValueError):
        return ""


@contextmanager
def served(board: Board, settings: Service, token: str, tell: Callable[[str], object]) -> Iterator[str]:
    """Serve the page in a thread of its own while the block runs; yields its address.

    Raises `ConfigError` for another host than this machine's without a token, or a port that is taken.
    """
    with server.listen(settings, token) as connection:
        config = uvicorn.Config(
            make(board, token), log_config=None, access_log=False, server_header=False, proxy_headers=False,
            limit_concurrency=64, timeout_graceful_shutdown=1,
        )  # fmt: skip
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([connection],), name="page", daemon=True)
        thread.start()
        address = server.address(connection)
        tell(f"live page: {address}")
        try:
            yield address
        finally:
            running.should_exit = True
            thread.join(3)
