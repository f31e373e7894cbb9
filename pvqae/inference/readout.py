"""From measures to maps and image scores: how far a value is from normal, which terms count, how they are fused.

n views; h_r w_r the grid of a measure; H W the finest grid of a view, or the canvas.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Normal:
    """Statistics of one measure over training normals, none of which was judged by its own part's codes."""

    mean: Tensor  # h_r x w_r, per location
    deviation: Tensor  # h_r x w_r
    global_mean: Tensor  # scalar
    global_deviation: Tensor  # scalar, > 0


def _per_location(normal: Normal, values: Tensor) -> Tensor:
    """Return deviations from what is normal at that place: helps image scores where all parts are placed alike."""
    return (values - normal.mean) / normal.deviation


def _per_measure(normal: Normal, values: Tensor) -> Tensor:
    """Return deviations from what is normal anywhere: helps maps."""
    return (values - normal.global_mean) / normal.global_deviation


SCALES: dict[str, Callable[[Normal, Tensor], Tensor]] = {"location": _per_location, "global": _per_measure}


LEVELS: dict[str, int] = {"all": 0, "finer": -2, "finest": -1}  # the first level that counts, of coarse to fine


@dataclass(frozen=True)
class Readout:
    """How measures become a map: whose distances count, and against which statistics of normals."""

    levels: str  # key of LEVELS
    scale: str  # key of SCALES


# Preferred first, where several do equally well: more levels average more, and what is the same place on every part
# has statistics of its own.
READOUTS = tuple(Readout(levels, scale) for scale in ("location", "global") for levels in LEVELS)


RECON: dict[str, Callable[[dict[str, Tensor]], list[Tensor]]] = {
    # Which normalised maps add up to S_recon.
    "memory": lambda maps: [m for name, m in maps.items() if name.startswith("memory_")],
    "decoder": lambda maps: [maps["decoder"]],
    "both": lambda maps: [m for name, m in maps.items() if name != "prior"],
}


_Part = Callable[[str], float]  # s_recon | s_prior | product → its image score, computed when it is asked for


def _gated(part: _Part) -> float:
    """Add to S_recon a quarter of what the allocation exceeds the normal one by.

    It is never less than S_recon, so an uninformative prior adds noise of a quarter at most.
    """
    prior = part("s_prior")
    return part("s_recon") + 0.125 * (prior + abs(prior))  # a quarter of max(0, prior), for tensors, too


# Image scores of S_recon, S_prior and their cell-wise product (paper) → the image score. The first two are in
# deviations of normals.
FUSIONS: dict[str, Callable[[_Part], float]] = {
    "recon": lambda part: part("s_recon"),
    "prior": lambda part: part("s_prior"),
    "product": lambda part: part("product"),
    "gated": _gated,
}
# The map that goes with a fusion: adding the coarse prior to the map blurs it, so only its literal forms do.
FUSION_MAP = {"recon": "s_recon", "prior": "s_prior", "product": "product", "gated": "s_recon"}


def top_mean(values: Tensor, share: float, views: int = 1) -> float:
    """Return the mean of the highest values, at least one: `share` of the number that one of the `views` has.

    With a share of all views, one small defect would weigh less, the more views an image has.
    """
    count = max(1, round(share * values.numel() / views))
    return float(values.flatten().topk(count).values.mean())


def blur(map_HW: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian of `sigma` cells, edges reflected."""
    return blur_all(map_HW[None], sigma)[0]


def blur_all(maps_BHW: Tensor, sigma: float) -> Tensor:
    """Blur a batch as `blur` does; the last bits depend on the batch's size."""
    radius = min(max(1, round(3 * sigma)), min(maps_BHW.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=maps_BHW.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(maps_BHW[:, None], (radius,) * 4, mode="reflect")
    once = torch.nn.functional.conv2d(padded, kernel[None, None, None, :])
    return torch.nn.functional.conv2d(once, kernel[None, None, :, None])[:, 0]
