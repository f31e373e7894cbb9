"""From measures to maps and image scores: how far a value is from normal, how much it counts, how parts are fused.

n views; h_r w_r the grid of a measure; H W the finest grid of a view, or the canvas.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


def _damped(normal: Normal, values: Tensor) -> Tensor:
    """Return deviations from the mean of that place, over a spread half of the place, half of all places.

    The place keeps its mean where parts are placed alike; where they are not, its own spread is noise.
    """
    spread = ((normal.deviation.square() + normal.global_deviation.square()) / 2).sqrt()
    return (values - normal.mean) / spread


def _least(normal: Normal, values: Tensor) -> Tensor:
    """Return the smaller of the deviations from that place and from any place: odd is what is odd by both."""
    return torch.minimum(_per_location(normal, values), _per_measure(normal, values))


SCALES: dict[str, Callable[[Normal, Tensor], Tensor]] = {
    "location": _per_location,
    "global": _per_measure,
    "damped": _damped,
    "least": _least,
}


@dataclass(frozen=True)
class Readout:
    """How measures become a map: the weight of each memory, and against which statistics of normals."""

    weights: Mapping[str, float] = field(hash=False)  # by name of a memory; one without a weight does not count
    scale: str  # key of SCALES

    def sum(self, maps: dict[str, Tensor], recon: str) -> list[Tensor]:
        """Return the weighted maps that add up to S_recon, `recon` a key of RECON.

        The decoder's residual has the weight 1. Each map is in deviations of normals.
        """
        weights = {"decoder": 1.0, **self.weights}
        return [weights[name] * maps[name] for name in maps if name in weights and RECON[recon](name)]


RECON: dict[str, Callable[[str], bool]] = {
    # Which measures, by their names, S_recon is made of.
    "memory": lambda name: name != "decoder",
    "decoder": lambda name: name == "decoder",
    "both": lambda name: True,
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
