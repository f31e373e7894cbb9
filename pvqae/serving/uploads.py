"""From a request to images as bytes: multipart files, or JSON with base64."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pvqae.serving.middleware import Refused

NAME = 255  # characters of a name that are kept
PARTS = 1000  # of a form that are looked at: each costs a buffer
MULTIPART, JSON = "multipart/form-data", "application/json"


@dataclass(frozen=True)
class Upload:
    """An image's bytes, and the name that its sender gave it."""

    name: str
    data: bytes


class Picture(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    image: str = Field(description="PNG, JPEG, BMP, TIFF, WEBP or PPM as base64, with or without `data:...;base64,`.")
    name: str = Field("image", max_length=NAME, description="Comes back as `path`.")


class Pictures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    images: list[Picture] = Field(min_length=1)


def schema(many: bool, limit: int) -> dict[str, Any]:
    """The request body for OpenAPI."""
    file = {"type": "string", "format": "binary"}
    key, part = (
        ("files", {"type": "array", "items": file, "minItems": 1, "maxItems": limit}) if many else ("file", file)
    )
    form = {"type": "object", "properties": {key: part}, "required": [key], "additionalProperties": False}
    text: dict[str, Any] = Picture.model_json_schema()
    if many:
        listed = {"type": "array", "items": text, "minItems": 1, "maxItems": limit}
        text = {"type": "object", "properties": {"images": listed}, "required": ["images"]}
        text["additionalProperties"] = False
    return {"required": True, "content": {MULTIPART: {"schema": form}, JSON: {"schema": text}}}


async def read(request: Request, limit: int, many: bool) -> list[Upload]:
    """The images of a request, at least one and at most `limit`. Raises `Refused` (400, 413, 415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return await _from_form(request, limit, "files" if many else "file")
    if kind == JSON:
        data = await request.body()
        # In a thread: base64 of 30 MB takes a tenth of a second.
        return await asyncio.to_thread(_from_json, data, limit, many)
    raise Refused(415, "content_type", f"expected {MULTIPART} or {JSON}, found {kind[:80] or 'no content type'!r}")


async def _from_form(request: Request, limit: int, key: str) -> list[Upload]:
    try:
        async with request.form(max_files=max(PARTS, limit + 1), max_fields=1) as form:
            parts = form.multi_items()
            files = [part for name, part in parts if name == key and isinstance(part, UploadFile)]
            if len(files) != len(parts) or not files:
                found = ", ".join(sorted({name[:80] for name, _ in parts})) or "none"
                raise Refused(400, "request", f"expected files in parts named {key!r}, found the parts {found}")
            _bounded(files, limit)
            return [Upload((part.filename or "image")[:NAME], await part.read()) for part in files]
    except (HTTPException, FormParserError) as error:
        found = error.detail if isinstance(error, HTTPException) else str(error)
        raise Refused(400, "request", f"expected a {MULTIPART} body, found a broken one: {found}") from None


def _bounded(images: Sequence[object], limit: int) -> None:
    if len(images) > limit:
        raise Refused(
            413, "too_many", f"expected at most {limit} images in a request, found more; send them in several"
        )


def _from_json(data: bytes, limit: int, many: bool) -> list[Upload]:
    try:
        found = Pictures.model_validate_json(data).images if many else [Picture.model_validate_json(data)]
    except ValidationError as error:
        # Without the input: it may be megabytes.
        lines = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()[:5]]
        raise Refused(400, "request", f"expected JSON as /openapi.json says, found: {'; '.join(lines)}") from None
    _bounded(found, limit)
    return [Upload(item.name, _bytes(item)) for item in found]


def _bytes(item: Picture) -> bytes:
    try:
        return base64.b64decode(item.image.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "request", f"{item.name}: expected an image as base64, found {error}") from None
