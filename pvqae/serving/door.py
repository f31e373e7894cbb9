"""What every request passes before and after the app: who may come in, how much, what is logged and counted."""

import hmac
import ipaddress
import logging
import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pvqae.config import Service
from pvqae.serving.limits import Rate
from pvqae.serving.metrics import Metrics
from pvqae.serving.refusal import Refused

log = logging.getLogger("pvqae.serving.access")

OPEN = frozenset({"/health", "/ready"})  # for probes: without a token, without a rate
KNOWN = OPEN | {"/metrics", "/openapi.json", "/v1/model", "/v1/score", "/v1/score/batch"}
HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach, or mean, `host`: a name or an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def as_get(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """A HEAD request, of a monitor or a load balancer, as GET whose body is not sent."""
    if scope["method"] != "HEAD":
        return scope, send

    async def bodiless(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return {**scope, "method": "GET"}, bodiless


class Door:
    """An ASGI app around another. Without a `token` it serves this machine only."""

    def __init__(self, app: ASGIApp, settings: Service, metrics: Metrics, token: str = "") -> None:
        self._app, self._max_bytes, self._metrics, self._token = app, settings.max_bytes, metrics, token
        self._rate = Rate(settings.rate, settings.burst)

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
        if scope["path"] in OPEN:
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
                raise Refused(401, "token", "expected the header `Authorization: Bearer TOKEN`, found none that fits")
        else:
            # A page in this machine's browser may let its own name point here; it can't choose this header.
            name = headers.get("host", "").rpartition(":")[0] if _has_port(headers) else headers.get("host", "")
            if not is_loopback(name):
                raise Refused(
                    421, "host", f"expected a request to this machine, found one to {name[:80]!r}; set a token"
                )

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that stops a body which grows beyond the limit, whatever its length was said to be."""
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
        endpoint = scope["path"] if scope["path"] in KNOWN else "other"
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.seconds.labels(endpoint).observe(seconds)
        # The path as it came, still quoted: no line breaks; and without the query, which may hold secrets.
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1")[:200]
        log.info("%s %s %s %d %.0f ms", _client(scope), scope["method"], path, status, seconds * 1000)


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else "unknown"


def _has_port(headers: Headers) -> bool:
    return headers.get("host", "").rpartition(":")[2].isdecimal()
