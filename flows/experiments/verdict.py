"""What the baselines share: the result of one image, and the way from a grid to the canvas.

B views; h w a grid; S side of a view.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pvqae.features.examples import Batch, Examples
from pvqae.inference import readout
from pvqae.model.backbones import Features, repeat_border
from pvqae.samples import geometry

CHUNK = 16  # views at once
SIGMA = 4.0  # of the map's Gaussian, model pixels (PatchCore's too)
HALF = 2  # bytes of a stored number, for all detectors


@dataclass(frozen=True, eq=False)
class Verdict:
    """One image's result; the fields that judging reads."""

    sample_id: str
    image_score: float
    anomaly_map: NDArray[np.float32]  # of the canvas
    parts: dict[str, float] = field(default_factory=dict)
    part_maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class Detector(Protocol):
    """A fitted baseline. Sizes are in millions of bytes, beyond the frozen backbone."""

    @property
    def megabytes(self) -> float: ...

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> Verdict: ...


def to_canvas(maps_Bhw: Tensor, valid_Bhw: Tensor, canvas: geometry.Canvas) -> NDArray[np.float32]:
    """Bilinear to model pixels, then a Gaussian."""
    side = canvas.views[0].valid.shape[0]
    full = F.interpolate(repeat_border(maps_Bhw, valid_Bhw)[:, None], (side, side), mode="bilinear")[:, 0]
    return geometry.stitch(canvas, [readout.blur(view, SIGMA).numpy() for view in full])


def features_of(of: Batch | Examples) -> Features:
    """Frozen features: baselines stand on nothing else."""
    assert of.features is not None
    return of.features
