"""The endpoints."""

import asyncio
from importlib import metadata
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pvqae.core import runtime
from pvqae.core.config import Compute, Service
from pvqae.core.errors import PvqaeError
from pvqae.serving import answers
from pvqae.serving.answers import ScoringQueue
from pvqae.serving.batch_rows import Values
from pvqae.serving.middleware import AccessMiddleware, ConcurrencyLimit, Metrics, Refused, body
from pvqae.serving.slot import Found, ModelSlot

_Responses = dict[int | str, dict[str, Any]]

_READERS = 4  # requests that may arrive at once, for each that may wait: slow senders hold no place in the queue


class _Query(BaseModel):
    """The query: a misspelt key is an error, not ignored."""

    model_config = ConfigDict(extra="forbid")
    heatmap: bool = Field(False, description="Add the heatmap, a PNG as base64.")
    mask: bool = Field(False, description="Add the mask, a PNG of the image's size as base64, white where marked.")


class Fault(BaseModel):
    reason: str
    message: str


class Problem(BaseModel):
    """No scores, and why."""

    error: Fault


class Region(BaseModel):
    """A connected marked area: box and area in pixels of the image, share of the image, highest map value."""

    x: int
    y: int
    width: int
    height: int
    area: int
    share: float
    peak: float


class Answer(BaseModel):
    """A row of `pvqae score`. margin = score - threshold: above 0 is a defect.

    `regions` are at most 50, highest values first; `region_count` has their true number, `marked_area` their share of
    the image. They do not depend on the decision. All are null for a model without a pixel threshold.
    """

    path: str
    sha256: str
    taken: str
    score: float | None
    threshold: float
    decision: Literal["defect", "normal", ""]
    margin: float | None
    pixel_threshold: float | None
    marked_area: float | None
    region_count: int | None
    regions: list[Region] | None
    version: str
    bundle_sha256: str
    level_shares: list[float] | None
    parts: dict[str, float] | None
    statistics: dict[str, float] | None
    error: str
    heatmap: str | None
    mask: str | None


class Answers(BaseModel):
    """In the order of the images; one that can't be scored has its reason in `error` and decision ""."""

    results: list[Answer]


class Card(BaseModel):
    dataset: str
    category: str
    version: str
    bundle_sha256: str
    calibration: dict[str, Any]
    health: dict[str, Any]
    image: dict[str, Any]
    model: dict[str, Any]
    score: dict[str, Any]
    lineage: dict[str, str]
    rejected: dict[str, str] | None


class Health(BaseModel):
    status: Literal["alive"]


class Ready(BaseModel):
    """`rejected`: a newer version that does not answer, and what kind of error it met. `on_disk`: what the folder that
    the model was loaded from holds now. `engine_note`: what to know where features are computed by another engine than
    the threshold was made with. `no_promise`: why no false-alarm rate is promised, "" where one is. The model answers
    from memory, as it was verified, whatever that is: "replaced" by another bundle, "damaged" or "gone". To load what
    is there, start the service again.
    """

    ready: bool
    model: str
    version: str
    bundle_sha256: str
    on_disk: Found
    rejected: dict[str, str] | None
    engine_note: str
    no_promise: str


def make(
    slot: ModelSlot, settings: Service, metrics: Metrics, token: str = "", plan: runtime.Plan | None = None
) -> AccessMiddleware:
    """Make the ASGI app. `plan` says how many threads score, else all cores do."""
    scoring = ScoringQueue(slot, settings, metrics, plan or runtime.plan(Compute(), 1))
    # No docs pages: they load scripts from elsewhere. /openapi.json stays.
    app = FastAPI(
        title="pvqae", version=metadata.version("pvqae"), docs_url=None, redoc_url=None, lifespan=scoring.open,
    )  # fmt: skip
    _explain(app, metrics)
    _add_probes(app, slot, scoring)
    _add_state(app, slot, metrics, scoring, _problems(token))
    _add_scoring(app, settings, scoring, _problems(token))
    if token:
        _declare_token(app)
    return AccessMiddleware(app, settings, metrics, token)


def _described(statuses: dict[int, str]) -> _Responses:
    return {status: {"model": Problem, "description": text} for status, text in statuses.items()}


def _problems(token: str) -> _Responses:
    """Return what `AccessMiddleware` may answer to any request."""
    who = {401: "no token"} if token else {421: "not sent to this machine"}
    return _described({413: "too much", 429: "too often", 503: "not now, but later", **who})


def _explain(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error as JSON in our words."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        metrics.errors.labels(error.reason).inc()
        return error.response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(body("request", str(error.detail)), error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]]
        return JSONResponse(body("request", "; ".join(lines)), 422)

    async def ours(request: Request, error: Exception) -> Response:
        return JSONResponse(body("internal", str(error)), 500)

    async def unforeseen(request: Request, error: Exception) -> Response:
        return JSONResponse(body("internal", "internal error; see the service log"), 500)

    for kind, handler in (
        *((Refused, refused), (HTTPException, http), (RequestValidationError, invalid)),
        *((PvqaeError, ours), (Exception, unforeseen)),
    ):
        app.add_exception_handler(kind, handler)


def _add_probes(app: FastAPI, slot: ModelSlot, scoring: ScoringQueue) -> None:
    @app.get("/health")
    async def health() -> Health:
        """Say whether the process answers at all."""
        return Health(status="alive")

    @app.get("/ready", responses=_described({503: "no model yet"}))
    async def ready() -> Ready:
        """Say whether a model is loaded: 503 until then.

        `on_disk` says if its folder has changed since; the service stays ready, for it answers with what was verified.
        """
        model, failure = scoring.model(), slot.failure
        return Ready(
            ready=True,
            model=model.name,
            version=model.version,
            bundle_sha256=model.detector.sha256,
            on_disk=await asyncio.to_thread(lambda: model.on_disk),
            rejected={"version": failure.version, "error": failure.kind} if failure else None,
            engine_note=model.detector.engine_note,
            no_promise=model.detector.card.get("no_promise", ""),
        )


def _add_state(app: FastAPI, slot: ModelSlot, metrics: Metrics, scoring: ScoringQueue, problems: _Responses) -> None:
    @app.get("/metrics", response_class=PlainTextResponse, responses=problems)
    async def prometheus() -> Response:
        """Return metrics for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/model", responses=problems)
    async def card() -> Card:
        """Return the model card: what answers, how its threshold was found, what it was made from."""
        failure = slot.failure
        rejected = {"version": failure.version, "error": f"{failure.kind}: {failure.text}"} if failure else None
        return Card(**scoring.model().card(), rejected=rejected)


def _add_scoring(app: FastAPI, settings: Service, scoring: ScoringQueue, problems: _Responses) -> None:
    arriving = ConcurrencyLimit(_READERS * settings.queue, "arriving")

    async def rows(request: Request, limit: int, many: bool, query: _Query) -> list[Values]:
        scoring.model()  # nothing is read for nobody
        with arriving.one():
            try:
                async with asyncio.timeout(settings.timeout):
                    found = await answers.read(request, limit, many)
            except TimeoutError:
                text = f"the request did not arrive within {settings.timeout:g} s; send it again"
                raise Refused(408, "slow", text) from None
        return await scoring.rows(found, query.heatmap, query.mask)

    refusals = {400: "no image, or not as described", 408: "too slow", 415: "unknown content type", 422: "bad query"}
    responses = problems | _described(refusals)

    @app.post("/v1/score", responses=responses, openapi_extra={"requestBody": answers.schema(False, 1)})
    async def score(request: Request, query: Annotated[_Query, Query()]) -> Answer:
        """Score one image: the part `file` of a form, or JSON with base64."""
        row = (await rows(request, 1, False, query))[0]
        if row["error"]:
            raise Refused(400, "image", row["error"])
        return Answer(**row)

    @app.post(
        "/v1/score/batch", responses=responses, openapi_extra={"requestBody": answers.schema(True, settings.max_batch)}
    )
    async def score_batch(request: Request, query: Annotated[_Query, Query()]) -> Answers:
        """Score several images: parts `files` of a form, or JSON with base64. All by the same version."""
        found = await rows(request, settings.max_batch, True, query)
        return Answers(results=[Answer(**row) for row in found])


def _declare_token(app: FastAPI) -> None:
    """Say in /openapi.json that all but the probes need the token; the door checks it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        found: dict[str, Any] = plain()
        found.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in found["paths"].items():
            for operation in methods.values():
                operation["security"] = [] if path in ("/health", "/ready") else [{"token": []}]
        return found

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to change its schema
