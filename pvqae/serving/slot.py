"""The model that answers, and its exchange: a new one is tried while the old one answers, then takes its place.

A request takes the model once, at its start, and keeps it to its end; so an exchange drops nothing.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pvqae.core.errors import CalibrationError, IntegrityError
from pvqae.core.files import Sealed
from pvqae.inference import bundle as bundles
from pvqae.inference.bundle import Detector
from pvqae.serving.middleware import Metrics

_log = logging.getLogger("pvqae.serving")


Found = Literal["same", "replaced", "damaged", "gone"]
_SAID: dict[Found, str] = {
    "same": "holds the loaded bundle again",
    "replaced": "holds another bundle now",
    "damaged": "no longer holds what its SHA256SUMS says",
    "gone": "is gone",
}


class _Origin:
    """The folder that a detector was loaded from, looked at again: the detector does not need it any more, but a person
    who changed it may think that it answers.
    """

    def __init__(self, bundle: Sealed) -> None:
        self._folder, self._sha256 = bundle.folder, bundle.sha256
        self._state: object = None  # the first look reads the files: they may have changed while they were loaded
        self._found: Found = "same"

    def look(self) -> Found:
        """Return what is there now; files are read only after a size or time has changed, a change is logged once."""
        if (state := _state(self._folder)) != self._state:
            found = self._compared()
            if found != self._found:
                _log.warning("%s %s; bundle %s goes on", self._folder, _SAID[found], self._sha256[:12])
            self._state, self._found = state, found
        return self._found

    def _compared(self) -> Found:
        if not self._folder.is_dir():
            return "gone"
        try:
            return "same" if bundles.verify(self._folder) == self._sha256 else "replaced"
        except (IntegrityError, OSError):
            return "damaged"


def _state(folder: Path) -> object:
    """Return a value that changes with any file below `folder`, none of which is read; else the error."""
    try:
        stats = {path.name: path.stat() for path in folder.iterdir()}
    except OSError as error:
        return error.errno
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()}


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded bundle; `version` and `lineage` are of the registered version, empty where there is none."""

    detector: Detector
    version: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)
    origin: _Origin | None = None  # None: it came from no folder

    @property
    def on_disk(self) -> Found:
        """What the folder that it was loaded from holds now."""
        return self.origin.look() if self.origin else "same"

    @property
    def name(self) -> str:
        return f"{self.detector.config['dataset']}/{self.detector.config['category']}"

    @property
    def described(self) -> str:
        """Version and bundle in words."""
        version = f"version {self.version}, " if self.version else ""
        return f"{version}bundle {self.detector.sha256[:12]}"

    def card(self) -> dict[str, Any]:
        """Return what a client may know of it; the scores of single calibration images are left out."""
        facts = self.detector.config
        return {
            **{key: facts[key] for key in ("dataset", "category", "image", "model", "score", "health")},
            "version": self.version,
            "bundle_sha256": self.detector.sha256,
            "calibration": {key: value for key, value in self.detector.card.items() if key != "scores"},
            "lineage": dict(self.lineage),
        }


def load(bundle: Sealed, version: str = "", lineage: Mapping[str, str] | None = None) -> Model:
    """Load a bundle's files, and score one image with it: the first one is slow, and a broken model shows here.

    Raises `IntegrityError` or `CalibrationError`.
    """
    detector = bundles.parse(bundle)
    side = int(detector.config["image"]["size"])
    found = detector.score(np.full((side, side, 3), 0.5, dtype=np.float32)).image_score
    if not math.isfinite(found):
        raise CalibrationError(f"{bundle.folder}: scores a grey image {found}, not a finite number; train it again")
    return Model(detector, version, lineage or {}, _Origin(bundle))


@dataclass(frozen=True)
class LoadFailure:
    """Why a newer version does not answer: `kind` is safe to show to anybody, `text` names files of this machine."""

    version: str
    kind: str
    text: str


Keep = Callable[[Mapping[str, Any]], None]


@dataclass
class Shadow:
    """A second model that scores what was answered, after the answer, for nobody but the one who compares: `keep` gets
    both scores of each image.
    """

    slot: "ModelSlot"
    keep: Keep


class ModelSlot:
    """The one place where the answering model stands. Assignment is atomic: readers see the old or the new one."""

    def __init__(self, metrics: Metrics) -> None:
        self.current: Model | None = None
        self.failure: LoadFailure | None = None
        self.shadow: Shadow | None = None
        self._metrics = metrics

    def put(self, model: Model) -> None:
        """Let `model` answer all requests that begin from now on."""
        self.current, self.failure = model, None
        self._metrics.model.clear()
        self._metrics.model.labels(model.name, model.version, model.detector.sha256).set(1)
        self._metrics.ready.set(1)
        self._metrics.loads.labels("loaded").inc()
        _log.info("%s answers now: %s", model.name, model.described)

    def keep(self, version: str, error: Exception, outcome: str = "rejected") -> None:
        """Go on with what there is: `version` could not be loaded (`rejected`), or is not known (`unreachable`)."""
        failure = LoadFailure(version, type(error).__name__, str(error))
        self._metrics.loads.labels(outcome).inc()
        if failure != self.failure:  # said once, not at every look
            _log.error("version %s does not answer: %s: %s", version or "?", failure.kind, failure.text)
        self.failure = failure
