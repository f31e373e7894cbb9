"""Who may use the review page: this machine, or whoever has the token; and only the page itself may change things."""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pvqae.serving import door

COOKIE = "pvqae_review"
MAX_BYTES = 16_384  # of a request
HEADERS: Mapping[str, str] = {
    **door.HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
}


def new_token() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Door:
    """An ASGI app around another. `token` "" serves this machine only; `page` is known to the page that we sent."""

    app: ASGIApp
    token: str = ""
    page: str = field(default_factory=new_token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        scope, send = door.as_get(scope, send)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self.app)(scope, receive, sending)

    def _refusal(self, request: Request) -> Response | None:
        if self.token and (answer := self._stranger(request)):
            return answer
        if not self.token and not door.is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or ""):
            # A foreign page may let its own name point to this machine; it can't choose this header.
            return PlainTextResponse("expected a request to this machine, found another name", 421)
        return None if request.method in ("GET", "HEAD") else self._foreign(request)

    def _stranger(self, request: Request) -> Response | None:
        """The token comes once with the address, then as a cookie that no other site's request carries."""
        given = request.query_params.get("token", "")
        if given and self._same(given, self.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        if self._same(request.cookies.get(COOKIE, ""), self.token):
            return None
        return PlainTextResponse("open the whole address that `python -m flows review` printed, with its token", 401)

    def _foreign(self, request: Request) -> Response | None:
        """Requests that change something: from our page alone, small."""
        headers = request.headers
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return PlainTextResponse(f"expected a request of this page, found one of {origin[:80]!r}", 403)
        if not self._same(headers.get("x-page", ""), self.page):
            return PlainTextResponse("expected a request of this page; load the page again", 403)
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            return PlainTextResponse(f"expected at most {MAX_BYTES} bytes", 413)
        return None

    @staticmethod
    def _same(given: str, expected: str) -> bool:
        return hmac.compare_digest(given.encode(), expected.encode())
