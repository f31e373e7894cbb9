"""What the measures are on normals, and how far a value is from that.

n views; h_r w_r the grid of a measure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 2**-11  # relative, of half precision, in which networks and features are kept
PSEUDO = 8  # views of the global statistics that each location starts with: few own views say little


@dataclass(frozen=True, eq=False)
class Normal:
    """Statistics of one measure over training normals, none of which was judged by its own part's codes."""

    mean: Tensor  # h_r x w_r, per location
    deviation: Tensor  # h_r x w_r
    global_mean: Tensor  # scalar
    global_deviation: Tensor  # scalar, > 0


def fit(values_nhw: Tensor, valid_nhw: Tensor, grain: float = 0.0) -> Normal:
    """Statistics over valid cells; those of a location are drawn towards the global ones, as if it had seen `PSEUDO`
    views of them: few views make a local deviation small by chance, and the score huge. `grain`: how far a value moves
    when the same part is photographed again (see `fitting.Retaken`); no deviation is below it."""
    every = values_nhw[valid_nhw]
    mean, deviation = every.mean(), every.std(correction=min(1, len(every) - 1))
    deviation = deviation.clamp_min(floor(float(mean), grain))
    weight = valid_nhw.to(values_nhw)
    count = weight.sum(0) + PSEUDO
    kept = torch.where(valid_nhw, values_nhw, mean)
    local = (kept * weight).sum(0).add(PSEUDO * mean) / count
    squares = ((kept - local).square() * weight).sum(0)
    return Normal(local, ((squares + PSEUDO * deviation.square()) / count).sqrt(), mean, deviation)


def floor(mean: float, grain: float) -> float:
    """The least deviation of values about `mean` that says something: what is below is rounding, or the camera's."""
    return max(grain, ROUNDING * max(1.0, abs(mean)))


def per_location(normal: Normal, values: Tensor) -> Tensor:
    """Deviations from what is normal at that place: helps image scores where parts lie alike."""
    return (values - normal.mean) / normal.deviation


def one_for_all(normal: Normal, values: Tensor) -> Tensor:
    """Deviations from what is normal anywhere: helps maps."""
    return (values - normal.global_mean) / normal.global_deviation


SCALES: dict[str, Callable[[Normal, Tensor], Tensor]] = {"location": per_location, "global": one_for_all}
