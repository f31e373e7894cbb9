"""The review page, what it asks for, and who may use it: this machine, or anybody with the token.

Only the page itself may change things. Images are named by their sha256 alone: no path ever comes from the browser.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.review.items import Item, ThumbnailCache
from flows.review.session import ReviewSession
from pvqae.core.errors import PvqaeError
from pvqae.serving import middleware

_FILES = Path(__file__).parent / "page"
_COOKIE = "pvqae_review"
_MAX_BYTES = 16_384  # of a request
_HEADERS: Mapping[str, str] = {
    **middleware.HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Reports bring their styles and scripts along. In the sandbox these have an origin of their own: they can't ask this
# server for anything, let alone label an image.
_REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORTS = "/report/"


@dataclass(frozen=True)
class ReviewMiddleware:
    """The host check, the token, and the protection against other sites, around the ASGI app.

    `token` "" serves this machine only; only the page that we sent knows `page`.
    """

    app: ASGIApp
    token: str = ""
    page: str = field(default_factory=secrets.token_urlsafe)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        scope, send = middleware.as_get(scope, send)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                report = {"Content-Security-Policy": _REPORT_POLICY} if scope["path"].startswith(_REPORTS) else {}
                MutableHeaders(scope=message).update({**_HEADERS, **report})
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self.app)(scope, receive, sending)

    def _refusal(self, request: Request) -> Response | None:
        if self.token and (answer := self._stranger(request)):
            return answer
        if not self.token and not middleware.names_this_machine(request.headers.get("host", "")):
            # A foreign page may let its own name point to this machine; it can't choose this header.
            return PlainTextResponse("this page is served to this machine only; the request names another host", 421)
        return None if request.method in ("GET", "HEAD") else self._foreign(request)

    def _stranger(self, request: Request) -> Response | None:
        """Refuse a request without the token, which comes once with the address, then as a same-site cookie."""
        given = request.query_params.get("token", "")
        if given and self._same(given, self.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(_COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        if self._same(request.cookies.get(_COOKIE, ""), self.token):
            return None
        return PlainTextResponse("open the whole address that `python -m flows review` printed, with its token", 401)

    def _foreign(self, request: Request) -> Response | None:
        """Refuse a request that would change something unless it is small and comes from our page."""
        headers = request.headers
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return PlainTextResponse(f"the request comes from {origin[:80]!r}, not from this page", 403)
        if not self._same(headers.get("x-page", ""), self.page):
            return PlainTextResponse("the request does not come from this page; load the page again", 403)
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _MAX_BYTES:
            return PlainTextResponse(f"expected at most {_MAX_BYTES} bytes", 413)
        return None

    @staticmethod
    def _same(given: str, expected: str) -> bool:
        return hmac.compare_digest(given.encode(), expected.encode())


_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Person(BaseModel):
    who: str = Field(max_length=400)


class _Said(_Person):
    id: _Sha256
    label: Literal["good", "defect", "neither", "skip"]


def make(
    session: ReviewSession, thumbnails: ThumbnailCache, who: str, apply: Callable[[], tuple[str, ...]], token: str = ""
) -> ReviewMiddleware:
    """Make the ASGI app. `who`: the name the page starts with; `apply` applies all labels and says what came of it."""
    app = FastAPI(title="pvqae review", docs_url=None, redoc_url=None, openapi_url=None)
    page = secrets.token_urlsafe()
    app.add_exception_handler(PvqaeError, _explained)
    _add_page(app, session, who, page)
    _add_reports(app, session.paths.root / "reports" / session.paths.dataset)
    _add_pictures(app, session, thumbnails)
    _add_labels(app, session, apply)
    return ReviewMiddleware(app, token, page)


def _explained(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


def _add_page(app: FastAPI, session: ReviewSession, who: str, page: str) -> None:
    environment = Environment(loader=FileSystemLoader(_FILES), autoescape=True, undefined=StrictUndefined)

    @app.get("/")
    def index() -> HTMLResponse:
        session.refresh()
        template = environment.get_template("review.html.j2")
        return HTMLResponse(template.render(dataset=session.paths.dataset, who=who, page=page))

    @app.get("/favicon.ico")
    def icon() -> Response:
        """Answer that there is none: browsers ask for one anyway."""
        return Response(status_code=204)

    @app.get("/{name}.{kind}")
    def file(name: Literal["review"], kind: Literal["css", "js"]) -> FileResponse:
        media = {"css": "text/css", "js": "text/javascript"}[kind]
        return FileResponse(_FILES / f"{name}.{kind}", media_type=f"{media}; charset=utf-8")


def _add_reports(app: FastAPI, folder: Path) -> None:
    @app.get(_REPORTS + "{name}")
    def report(
        name: Literal["history.html", "index.html", "metrics.json", "images.csv", "roc.csv"],
    ) -> FileResponse:
        if not (folder / name).is_file():
            raise HTTPException(404, "not written yet: run python -m flows history, or train")
        return FileResponse(folder / name)


def _add_pictures(app: FastAPI, session: ReviewSession, thumbnails: ThumbnailCache) -> None:
    def known(sha256: str) -> Item:
        item = session.item(sha256)
        if item is None:
            raise HTTPException(404, "no such image in a queue")
        return item

    @app.get("/picture/{sha256}")
    def picture(sha256: _Sha256) -> FileResponse:
        return FileResponse(thumbnails.picture(known(sha256)), media_type="image/webp")

    @app.get("/heatmap/{sha256}")
    def heatmap(sha256: _Sha256) -> FileResponse:
        file = thumbnails.heatmap(known(sha256))
        if file is None:
            raise HTTPException(404, "the class has no champion")
        return FileResponse(file, media_type="image/webp")


def _add_labels(app: FastAPI, session: ReviewSession, apply: Callable[[], tuple[str, ...]]) -> None:
    @app.get("/state")
    def state() -> dict[str, Any]:
        return session.state()

    @app.post("/label")
    def label(said: _Said) -> dict[str, Any]:
        session.label(said.id, said.label, said.who)
        return session.state()

    @app.post("/undo")
    def undo(person: _Person) -> dict[str, Any]:
        item = session.undo(person.who)
        return {**session.state(), "undone": item.sha256 if item else ""}

    @app.post("/apply")
    async def applied() -> dict[str, Any]:
        work: Callable[..., Awaitable[tuple[str, ...]]] = run_in_threadpool
        lines = await work(apply)
        await run_in_threadpool(session.refresh)
        await run_in_threadpool(session.write_disagreements)
        return {**session.state(), "lines": lines}
