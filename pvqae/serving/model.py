"""The model that answers, and its exchange: a new one is loaded and tried beside the old, then takes its place.

A request takes the model once, at its start, and keeps it to its end; so an exchange drops nothing.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pvqae.errors import CalibrationError
from pvqae.inference import bundle as bundles
from pvqae.inference.bundle import Detector
from pvqae.serving.metrics import Metrics

log = logging.getLogger("pvqae.serving")


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded bundle; `version` and `lineage` are of the registered version, empty where there is none."""

    detector: Detector
    version: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.detector.config['dataset']}/{self.detector.config['category']}"

    def card(self) -> dict[str, Any]:
        """What a client may know of it; the scores of single calibration images are left out."""
        facts = self.detector.config
        return {
            **{key: facts[key] for key in ("dataset", "category", "image", "model", "score", "health")},
            "version": self.version,
            "bundle_sha256": self.detector.sha256,
            "calibration": {key: value for key, value in self.detector.card.items() if key != "scores"},
            "lineage": dict(self.lineage),
        }


def load(folder: Path, version: str = "", lineage: Mapping[str, str] | None = None) -> Model:
    """Check and load a bundle, and score one image with it: the first one is slow, and a broken model shows here.

    Raises `IntegrityError` or `CalibrationError`.
    """
    detector = bundles.load(folder)
    side = int(detector.config["image"]["size"])
    found = detector.score(np.full((side, side, 3), 0.5, dtype=np.float32)).image_score
    if not math.isfinite(found):
        raise CalibrationError(f"{folder}: expected a finite score of a grey image, found {found}; train it again")
    return Model(detector, version, lineage or {})


@dataclass(frozen=True)
class Trouble:
    """Why a newer version does not answer: `kind` is safe to show to anybody, `text` names files of this machine."""

    version: str
    kind: str
    text: str


class Holder:
    """The one place where the answering model stands. Assignment is atomic: readers see the old or the new one."""

    def __init__(self, metrics: Metrics) -> None:
        self.current: Model | None = None
        self.trouble: Trouble | None = None
        self._metrics = metrics

    def put(self, model: Model) -> None:
        """Let `model` answer all requests that begin from now on."""
        self.current, self.trouble = model, None
        self._metrics.model.clear()
        self._metrics.model.labels(model.name, model.version, model.detector.sha256).set(1)
        self._metrics.ready.set(1)
        self._metrics.loads.labels("loaded").inc()
        log.info("%s answers now: %s", model.name, described(model))

    def keep(self, version: str, error: Exception, outcome: str = "rejected") -> None:
        """Go on with what there is: `version` could not be loaded (`rejected`), or is not known (`unreachable`)."""
        trouble = Trouble(version, type(error).__name__, str(error))
        self._metrics.loads.labels(outcome).inc()
        if trouble != self.trouble:  # said once, not at every look
            log.error("version %s does not answer: %s: %s", version or "?", trouble.kind, trouble.text)
        self.trouble = trouble


def described(model: Model) -> str:
    """In words: version and bundle."""
    version = f"version {model.version}, " if model.version else ""
    return f"{version}bundle {model.detector.sha256[:12]}"
