"""The code that MLflow stores and runs for a registered detector: it only calls the one scoring path of pvqae."""

import base64
import binascii
import os
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pvqae.core.errors import DataError
from pvqae.inference import bundle

LONGEST_PATH = 4096
# For a server: any caller could else ask for any image of its disk. Callers then send base64.
PATHS_OFF = "PVQAE_NO_PATHS"


def _decoded(text: str) -> bytes:
    """Return the bytes of a base64 string, with or without a `data:...;base64,` in front."""
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except binascii.Error:
        raise DataError(f"expected the path of an image or an image as base64, found {text[:80]!r}") from None


class Detector(PythonModel):  # type: ignore[misc]  # mlflow is not typed for strict mypy
    """Column `image` (a path, or an encoded image as base64) → image_score, decision, anomaly_map (H x W lists)."""

    def load_context(self, context: PythonModelContext) -> None:
        self._detector = bundle.load(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        return pandas.DataFrame([self._one(text) for text in model_input["image"]])

    def _one(self, text: str) -> dict[str, Any]:
        if not os.environ.get(PATHS_OFF) and len(text) <= LONGEST_PATH and Path(text).is_file():
            return self._score(text)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image"
            file.write_bytes(_decoded(text))
            return self._score(file)

    def _score(self, file: Path | str) -> dict[str, Any]:
        scored = self._detector.score(file)
        threshold = self._detector.card["threshold"]
        return {
            "image_score": float(scored.image_score),
            "decision": "defect" if scored.image_score > threshold else "normal",
            "anomaly_map": scored.anomaly_map.astype(float).tolist(),
        }


mlflow.models.set_model(Detector())
