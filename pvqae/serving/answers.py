"""From a request to its answers: images as bytes, a bounded queue, and worker threads that score them.

A request has multipart files, or JSON with base64.
"""

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pvqae.core.config import Service
from pvqae.core.runtime import Plan
from pvqae.report import pictures
from pvqae.serving import batch
from pvqae.serving.batch_rows import Values
from pvqae.serving.middleware import ConcurrencyLimit, Metrics, Refused
from pvqae.serving.slot import Model, ModelSlot, Shadow

_log = logging.getLogger("pvqae.serving")

_NAME = 255  # characters of a name that are kept
_PARTS = 1000  # of a form that are looked at: each costs a buffer
_MULTIPART, _JSON = "multipart/form-data", "application/json"


@dataclass(frozen=True)
class _Upload:
    """An image's bytes, and the name that its sender gave it."""

    name: str
    data: bytes


class _Picture(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    image: str = Field(description="PNG, JPEG, BMP, TIFF, WEBP or PPM as base64, with or without `data:...;base64,`.")
    name: str = Field("image", max_length=_NAME, description="Comes back as `path`.")


class _Pictures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    images: list[_Picture] = Field(min_length=1)


def schema(many: bool, limit: int) -> dict[str, Any]:
    """Return the request body for OpenAPI."""
    file = {"type": "string", "format": "binary"}
    key, part = (
        ("files", {"type": "array", "items": file, "minItems": 1, "maxItems": limit}) if many else ("file", file)
    )
    form = {"type": "object", "properties": {key: part}, "required": [key], "additionalProperties": False}
    text: dict[str, Any] = _Picture.model_json_schema()
    if many:
        listed = {"type": "array", "items": text, "minItems": 1, "maxItems": limit}
        text = {"type": "object", "properties": {"images": listed}, "required": ["images"]}
        text["additionalProperties"] = False
    return {"required": True, "content": {_MULTIPART: {"schema": form}, _JSON: {"schema": text}}}


async def read(request: Request, limit: int, many: bool) -> list[_Upload]:
    """Return the images of a request, at least one and at most `limit`. Raises `Refused` (400, 413, 415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        return await _from_form(request, limit, "files" if many else "file")
    if kind == _JSON:
        data = await request.body()
        # In a thread: base64 of 30 MB takes a tenth of a second.
        return await asyncio.to_thread(_from_json, data, limit, many)
    raise Refused(415, "content_type", f"expected {_MULTIPART} or {_JSON}, found {kind[:80] or 'no content type'!r}")


async def _from_form(request: Request, limit: int, key: str) -> list[_Upload]:
    try:
        async with request.form(max_files=max(_PARTS, limit + 1), max_fields=1) as form:
            parts = form.multi_items()
            files = [part for name, part in parts if name == key and isinstance(part, UploadFile)]
            if len(files) != len(parts) or not files:
                found = ", ".join(sorted({name[:80] for name, _ in parts})) or "none"
                raise Refused(400, "request", f"expected files in parts named {key!r}, found the parts {found}")
            _bounded(files, limit)
            return [_Upload((part.filename or "image")[:_NAME], await part.read()) for part in files]
    except (HTTPException, FormParserError) as error:
        found = error.detail if isinstance(error, HTTPException) else str(error)
        raise Refused(400, "request", f"broken {_MULTIPART} body: {found}") from None


def _bounded(images: Sequence[object], limit: int) -> None:
    if len(images) > limit:
        raise Refused(413, "too_many", f"more than {limit} images in a request; send them in several")


def _from_json(data: bytes, limit: int, many: bool) -> list[_Upload]:
    try:
        found = _Pictures.model_validate_json(data).images if many else [_Picture.model_validate_json(data)]
    except ValidationError as error:
        # Without the input: it may be megabytes.
        lines = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()[:5]]
        raise Refused(400, "request", f"not the JSON that /openapi.json describes: {'; '.join(lines)}") from None
    _bounded(found, limit)
    return [_Upload(item.name, _bytes(item)) for item in found]


def _bytes(item: _Picture) -> bytes:
    try:
        return base64.b64decode(item.image.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "request", f"{item.name}: not base64: {error}") from None


class ScoringQueue:
    """Scores as many images at once as the plan has threads; an image alone gets all of torch's threads.

    Small operations can't use a second thread, so two images on one thread each take less time than one after the
    other. Tiled images are scored one at a time: several would not share the memory.
    """

    def __init__(self, slot: ModelSlot, settings: Service, metrics: Metrics, plan: Plan) -> None:
        self._holder, self._settings, self._metrics, self._plan = slot, settings, metrics, plan
        self._places = ConcurrencyLimit(settings.queue, "waiting for scores")
        self._pool = ThreadPoolExecutor(1)
        self._requests = 0  # that somebody waits for
        self._tiled, self._counting, self._scoring = Lock(), Lock(), 0

    @asynccontextmanager
    async def open(self, app: object) -> AsyncIterator[None]:
        """Keep the worker threads while the app runs: its lifespan."""
        self._pool = ThreadPoolExecutor(self._plan.threads, "scoring", initializer=self._plan.apply)
        yield
        self._pool.shutdown(wait=False, cancel_futures=True)

    def model(self) -> Model:
        """Return the model that answers now. Raises `Refused` (503) if none is loaded yet."""
        if self._holder.current is None:
            raise Refused(503, "not_ready", "no model is loaded yet; ask /ready and try again", 5)
        return self._holder.current

    async def rows(self, uploads: Sequence[_Upload], heatmap: bool, mask: bool) -> list[Values]:
        """Return a row per image, all by the same model; a place in the queue is held meanwhile.

        Raises `Refused` (503) if the queue is full, no model is loaded, or the time is up: images that did not begin by
        then are not scored.
        """
        model = self.model()
        self._requests += 1
        try:
            found = await self._answered(model, uploads, heatmap, mask)
        finally:
            self._requests -= 1
        for upload, row in zip(uploads, found, strict=True):
            if self._holder.shadow and not row["error"]:
                self._pool.submit(self._in_shadow, self._holder.shadow, upload, row)
        return found

    async def _answered(self, model: Model, uploads: Sequence[_Upload], heatmap: bool, mask: bool) -> list[Values]:
        with self._places.one(), self._metrics.waiting.track_inprogress():
            try:
                async with asyncio.timeout(self._settings.timeout):
                    return [await self._in_thread(model, upload, heatmap, mask) for upload in uploads]
            except TimeoutError:
                text = f"scoring timed out after {self._settings.timeout:g} s; retry later"
                raise Refused(503, "timeout", text, self._settings.timeout) from None

    def _in_shadow(self, shadow: Shadow, upload: _Upload, row: Values) -> None:
        """Score what was answered with the other model, too, unless somebody waits for an answer by now."""
        model, outcome = shadow.slot.current, "failed"
        try:
            if model is None or self._requests:
                outcome = "skipped"
                return
            with self._threads(model):
                other, _ = batch.one(model.detector, upload.data, upload.name, model.version)
            shadow.keep({key: row[key] for key in _OF_IMAGE} | {"answered": _in_short(row), "shadow": _in_short(other)})
            outcome = "failed" if other["error"] else "scored"
        except Exception:  # nobody waits for it: it is told, and the service goes on
            _log.exception("the model in shadow did not score %s", upload.name)
        finally:
            self._metrics.shadows.labels(outcome).inc()

    async def _in_thread(self, model: Model, upload: _Upload, heatmap: bool, mask: bool) -> Values:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._one, model, upload, heatmap, mask)

    def _one(self, model: Model, upload: _Upload, heatmap: bool, mask: bool) -> Values:
        start = time.perf_counter()
        with self._threads(model):
            row = _answer(model, upload, heatmap, mask)
        if row["error"]:
            self._metrics.errors.labels("image").inc()
        else:
            self._metrics.images.inc()
            self._metrics.defects.inc(row["decision"] == "defect")
            self._metrics.scoring.observe(time.perf_counter() - start)
        return row

    @contextmanager
    def _threads(self, model: Model) -> Iterator[None]:
        """Give the image that is scored meanwhile its share of the threads. OpenMP keeps their number per thread."""
        with self._tiled if model.detector.scorer.image.aspect == "tile" else nullcontext():
            with self._counting:
                self._scoring += 1
                torch.set_num_threads(max(1, self._plan.threads // self._scoring))
            try:
                yield
            finally:
                with self._counting:
                    self._scoring -= 1


_OF_IMAGE = ("path", "sha256", "taken")


def _in_short(row: Values) -> dict[str, Any]:
    return {key: row[key] for key in ("version", "bundle_sha256", "score", "threshold", "decision", "error")}


def _answer(model: Model, upload: _Upload, heatmap: bool, mask: bool) -> Values:
    """Return the row as `pvqae score` has it, and on request heatmap and mask as base64 of a PNG."""
    row, scored = batch.one(model.detector, upload.data, upload.name, model.version)
    drawn = pictures.png(batch.heatmap(model.detector, scored)) if heatmap and scored else None
    marked = batch.mask(model.detector, scored) if mask and scored else None
    return {**row, "heatmap": _base64(drawn), "mask": _base64(marked)}


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
