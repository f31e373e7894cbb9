"""From images to answers: one worker thread scores, a bounded number of requests waits for it."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from pvqae.core.config import Service
from pvqae.core.errors import DataError
from pvqae.report import pictures
from pvqae.serving import batch
from pvqae.serving.middleware import Metrics, Places, Refused
from pvqae.serving.slot import Holder, Model
from pvqae.serving.uploads import Upload

Values = dict[str, Any]


class Scoring:
    """`prepare` runs once in the worker thread: OpenMP keeps the number of threads per thread, so it is set there.

    One worker, because torch spreads each image over the cores already; it also bounds memory to one decoded image.
    """

    def __init__(self, holder: Holder, settings: Service, metrics: Metrics, prepare: Callable[[], None]) -> None:
        self._holder, self._settings, self._metrics = holder, settings, metrics
        self.places = Places(settings.queue, "waiting for scores")
        self._prepare, self._pool = prepare, ThreadPoolExecutor(1)

    @asynccontextmanager
    async def open(self, app: object) -> AsyncIterator[None]:
        """The app's lifespan: the worker thread begins and ends with it."""
        self._pool = ThreadPoolExecutor(1, "scoring", initializer=self._prepare)
        yield
        self._pool.shutdown(wait=False, cancel_futures=True)

    def model(self) -> Model:
        """The model that answers now. Raises `Refused` (503) when none is loaded yet."""
        if self._holder.current is None:
            raise Refused(503, "not_ready", "expected a loaded model, found none yet; ask /ready and try again", 5)
        return self._holder.current

    async def rows(self, uploads: Sequence[Upload], heatmap: bool) -> list[Values]:
        """A row per image, all by the same model; a place in the queue is held meanwhile.

        Raises `Refused` (503) when the queue is full, no model is loaded, or the time is up: what did not begin by
        then is not scored.
        """
        model = self.model()
        with self.places.one(), self._metrics.waiting.track_inprogress():
            try:
                async with asyncio.timeout(self._settings.timeout):
                    return [await self._in_thread(model, upload, heatmap) for upload in uploads]
            except TimeoutError:
                text = f"expected scores within {self._settings.timeout:g} s, found more work than that; try again"
                raise Refused(503, "timeout", text, self._settings.timeout) from None

    async def _in_thread(self, model: Model, upload: Upload, heatmap: bool) -> Values:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._one, model, upload, heatmap)

    def _one(self, model: Model, upload: Upload, heatmap: bool) -> Values:
        start = time.perf_counter()
        row, drawn = answer(model, upload, heatmap)
        if row["error"]:
            self._metrics.errors.labels("image").inc()
        else:
            self._metrics.images.inc()
            self._metrics.defects.inc(row["decision"] == "defect")
            self._metrics.scoring.observe(time.perf_counter() - start)
        return {**row, "heatmap": drawn}


def answer(model: Model, upload: Upload, heatmap: bool) -> tuple[Values, str | None]:
    """The row as `pvqae score` has it, and on request the heatmap as base64 of a PNG."""
    try:
        row, scored = batch.one(model.detector, upload.data, upload.name, model.version)
    except DataError as error:
        return batch.failed(model.detector, upload.data, upload.name, str(error), model.version), None
    if not heatmap or scored is None:
        return row, None
    return row, base64.b64encode(pictures.png(batch.heatmap(model.detector, scored))).decode()
