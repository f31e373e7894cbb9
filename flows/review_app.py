"""The review page and what it asks for. Images are named by their sha256 alone: no path ever comes from the browser."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from flows.review_desk import Desk
from flows.review_door import Door, new_token
from flows.review_queues import Item
from pvqae.errors import PvqaeError

FILES = Path(__file__).parent / "review_page"
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Who(BaseModel):
    who: str = Field(max_length=400)


class Said(Who):
    id: Sha256
    label: Literal["good", "defect", "skip"]


class Pictures(Protocol):
    """`review_files.Album`."""

    def picture(self, item: Item) -> Path: ...
    def heatmap(self, item: Item) -> Path | None: ...


def make(desk: Desk, album: Pictures, who: str, apply: Callable[[], tuple[str, ...]], token: str = "") -> Door:
    """The ASGI app. `who`: the name the page starts with; `apply` applies all labels, and says what came of it."""
    app = FastAPI(title="pvqae review", docs_url=None, redoc_url=None, openapi_url=None)
    page = new_token()
    app.add_exception_handler(PvqaeError, _explained)
    _add_page(app, desk, who, page)
    _add_pictures(app, desk, album)
    _add_labels(app, desk, apply)
    return Door(app, token, page)


def _explained(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


def _add_page(app: FastAPI, desk: Desk, who: str, page: str) -> None:
    environment = Environment(loader=FileSystemLoader(FILES), autoescape=True, undefined=StrictUndefined)

    @app.get("/")
    def index() -> HTMLResponse:
        desk.refresh()
        template = environment.get_template("review.html.j2")
        return HTMLResponse(template.render(dataset=desk.places.dataset, who=who, page=page))

    @app.get("/favicon.ico")
    def icon() -> Response:
        """None: browsers ask for one anyway."""
        return Response(status_code=204)

    @app.get("/{name}.{kind}")
    def file(name: Literal["review"], kind: Literal["css", "js"]) -> FileResponse:
        media = {"css": "text/css", "js": "text/javascript"}[kind]
        return FileResponse(FILES / f"{name}.{kind}", media_type=f"{media}; charset=utf-8")


def _add_pictures(app: FastAPI, desk: Desk, album: Pictures) -> None:
    def known(sha256: str) -> Item:
        item = desk.item(sha256)
        if item is None:
            raise HTTPException(404, "no such image in a queue")
        return item

    @app.get("/picture/{sha256}")
    def picture(sha256: Sha256) -> FileResponse:
        return FileResponse(album.picture(known(sha256)), media_type="image/webp")

    @app.get("/heatmap/{sha256}")
    def heatmap(sha256: Sha256) -> FileResponse:
        file = album.heatmap(known(sha256))
        if file is None:
            raise HTTPException(404, "the class has no champion")
        return FileResponse(file, media_type="image/webp")


def _add_labels(app: FastAPI, desk: Desk, apply: Callable[[], tuple[str, ...]]) -> None:
    @app.get("/state")
    def state() -> dict[str, Any]:
        return desk.state()

    @app.post("/label")
    def label(said: Said) -> dict[str, Any]:
        desk.label(said.id, said.label, said.who)
        return desk.state()

    @app.post("/undo")
    def undo(asked: Who) -> dict[str, Any]:
        item = desk.undo(asked.who)
        return {**desk.state(), "undone": item.sha256 if item else ""}

    @app.post("/apply")
    async def applied() -> dict[str, Any]:
        work: Callable[..., Awaitable[tuple[str, ...]]] = run_in_threadpool
        lines = await work(apply)
        await run_in_threadpool(desk.refresh)
        await run_in_threadpool(desk.write_disagreements)
        return {**desk.state(), "lines": lines}
