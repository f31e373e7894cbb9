"""What a client is told when it gets no scores: always JSON, in the words of our errors, never a traceback.

What Prometheus sees of one service; every service has a registry of its own.

How much one client, and all together, may ask for. All of it runs on the event loop, so nothing is locked.

What every request passes before and after the app: who may come in, how much, what is logged and counted.
"""

import hmac
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pvqae.core.config import Service
from pvqae.core.errors import PvqaeError


class Refused(PvqaeError):  # noqa: N818 - it names an outcome, not a fault of the code
    """A request that is not served. `reason` is one word for programs and metrics, `retry` seconds until it may be."""

    def __init__(self, status: int, reason: str, message: str, retry: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry = status, reason, retry

    def response(self) -> JSONResponse:
        headers = {} if self.retry is None else {"Retry-After": str(max(1, math.ceil(self.retry)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(body(self.reason, str(self)), self.status, headers)


def body(reason: str, message: str) -> dict[str, dict[str, str]]:
    return {"error": {"reason": reason, "message": message}}


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Labels have few values each: clients can't make new ones."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter("pvqae_requests", "Requests answered", ["endpoint", "status"], registry=own)
        self.seconds = Histogram(
            "pvqae_request_seconds", "Seconds from request to answer", ["endpoint"], buckets=_SECONDS, registry=own
        )
        self.scoring = Histogram("pvqae_scoring_seconds", "Seconds of one image", buckets=_SECONDS, registry=own)
        self.images = Counter("pvqae_images", "Images scored", registry=own)
        self.defects = Counter("pvqae_defects", "Images above the threshold", registry=own)
        self.shadows = Counter(
            "pvqae_shadow_images",
            "Images for the model in shadow: scored, skipped as requests waited, failed",
            ["outcome"],
            registry=own,
        )
        self.errors = Counter("pvqae_errors", "Requests or images without a score", ["reason"], registry=own)
        self.waiting = Gauge("pvqae_waiting", "Requests that wait for scores, running ones included", registry=own)
        self.ready = Gauge("pvqae_ready", "1 when a model is loaded", registry=own)
        self.model = Gauge(
            "pvqae_model_info", "1 for the model that answers", ["model", "version", "bundle_sha256"], registry=own
        )
        self.loads = Counter("pvqae_reloads", "Attempts to load a version, by outcome", ["outcome"], registry=own)
        for outcome in ("loaded", "rejected", "unreachable"):
            self.loads.labels(outcome)  # shown from the start: an alert on its growth needs the zero

    def text(self) -> bytes:
        return generate_latest(self.registry)


_CLIENTS = 10_000  # whose last requests are remembered, about 2 MB


class _RateLimit:
    """A bucket of `burst` tokens per client that fills by `rate` a second. `rate` 0: no limit."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → tokens, when

    def take(self, client: str) -> None:
        """Take a token of the client's. Raises `Refused` (429) if its bucket is empty."""
        if not self._rate:
            return
        now = self._clock()
        tokens, before = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - before) * self._rate)
        self._buckets[client] = (max(0.0, tokens - 1) if tokens >= 1 else tokens, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise Refused(
                429,
                "rate",
                f"more than {self._rate:g} requests per second ({self._burst} at once) from one client; wait, or send "
                "several images per request to /v1/score/batch",
                (1 - tokens) / self._rate,
            )


class ConcurrencyLimit:
    """At most `size` requests at once in a part of the service; the next one is refused, not kept waiting."""

    def __init__(self, size: int, what: str) -> None:
        self._size, self._what, self.taken = size, what, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one place. Raises `Refused` (503) if all are taken."""
        if self.taken >= self._size:
            text = f"{self._size} requests are {self._what} already, the most at once; try again"
            raise Refused(503, "busy", text, 1)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


_log = logging.getLogger("pvqae.serving.access")

_OPEN = frozenset({"/health", "/ready"})  # for probes: without a token, without a rate
_KNOWN = _OPEN | {"/metrics", "/openapi.json", "/v1/model", "/v1/score", "/v1/score/batch"}
HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address, is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def names_this_machine(host: str) -> bool:
    """Return whether the header `Host`, with or without a port, names this machine by a loopback address."""
    name, _, port = host.rpartition(":")
    return is_loopback(name if port.isdecimal() else host)


def as_get(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Treat a HEAD request, of a monitor or a load balancer, as GET whose body is not sent."""
    if scope["method"] != "HEAD":
        return scope, send

    async def bodiless(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return {**scope, "method": "GET"}, bodiless


class AccessMiddleware:
    """An ASGI app around another. Without a `token` it serves this machine only."""

    def __init__(self, app: ASGIApp, settings: Service, metrics: Metrics, token: str = "") -> None:
        self._app, self._max_bytes, self._metrics, self._token = app, settings.max_bytes, metrics, token
        self._rate = _RateLimit(settings.rate, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        asked, send = as_get(scope, send)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._admit(scope)
            await self._app(asked, self._bounded(receive), sending)
        except Refused as refused:
            self._metrics.errors.labels(refused.reason).inc()
            await refused.response()(scope, receive, sending)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _admit(self, scope: Scope) -> None:
        if scope["path"] in _OPEN:
            return
        headers = Headers(scope=scope)
        self._rate.take(_client(scope))
        self._check_caller(headers)
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._max_bytes:
            raise self._too_large(announced)

    def _check_caller(self, headers: Headers) -> None:
        if self._token:
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode(), self._token.encode())
            if kind.lower() != "bearer" or not same:
                raise Refused(401, "token", "the header `Authorization: Bearer TOKEN` is missing or has another token")
        else:
            # A page in this machine's browser may let its own name point here; it can't choose this header.
            if not names_this_machine(host := headers.get("host", "")):
                raise Refused(
                    421,
                    "host",
                    f"without a token only this machine is served, the request names {host[:80]!r}; set a token",
                )

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that stops a body beyond the limit, even if its announced length was within it."""
        total = 0

        async def receiving() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_bytes:
                raise self._too_large("more")
            return message

        return receiving

    def _too_large(self, found: str) -> Refused:
        text = (
            f"expected at most {self._max_bytes} bytes in a request, found {found[:20]}; send fewer or smaller images"
        )
        return Refused(413, "too_large", text)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = scope["path"] if scope["path"] in _KNOWN else "other"
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.seconds.labels(endpoint).observe(seconds)
        # The path as it came, still quoted: no line breaks; and without the query, which may hold secrets.
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1")[:200]
        _log.info("%s %s %s %d %.0f ms", _client(scope), scope["method"], path, status, seconds * 1000)


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else "unknown"
