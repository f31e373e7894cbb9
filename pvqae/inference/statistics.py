"""What the measures are on normals, and how far a value is from that.

n views; h_r w_r the grid of a measure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 3  # views that make a location's own statistics; below, the global ones stand in


@dataclass(frozen=True, eq=False)
class Normal:
    """Statistics of one measure over training normals, none of which was judged by its own part's codes."""

    mean: Tensor  # h_r x w_r, per location
    deviation: Tensor  # h_r x w_r
    global_mean: Tensor  # scalar
    global_deviation: Tensor  # scalar, > 0


def fit(values_nhw: Tensor, valid_nhw: Tensor) -> Normal:
    """Statistics over valid cells. A tenth of the global deviation is added to each local one: few views make it
    small by chance, and the score huge."""
    every = values_nhw[valid_nhw]
    mean, deviation = every.mean(), every.std().clamp_min(1e-6)
    count = valid_nhw.sum(0)
    kept = torch.where(valid_nhw, values_nhw, torch.zeros_like(values_nhw))
    local = kept.sum(0) / count.clamp_min(1)
    spread = torch.where(valid_nhw, (values_nhw - local).square(), torch.zeros_like(values_nhw)).sum(0)
    local_deviation = (spread / (count - 1).clamp_min(1)).sqrt() + 0.1 * deviation
    enough = count >= LEAST
    return Normal(torch.where(enough, local, mean), torch.where(enough, local_deviation, deviation), mean, deviation)


def per_location(normal: Normal, values: Tensor) -> Tensor:
    """Deviations from what is normal at that place: helps image scores where parts lie alike."""
    return (values - normal.mean) / normal.deviation


def one_for_all(normal: Normal, values: Tensor) -> Tensor:
    """Deviations from what is normal anywhere: helps maps."""
    return (values - normal.global_mean) / normal.global_deviation


SCALES: dict[str, Callable[[Normal, Tensor], Tensor]] = {"location": per_location, "global": one_for_all}
