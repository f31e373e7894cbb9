"""Richness of the patch under each coarse cell, as the cost that the budget loss reads (METHOD section 2).

B batch; S side of the image; h w the coarsest grid; P side of a patch, S/h; M coefficients. Cost 1 means poor
content (fine codes are dear), 0 means rich.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae.samples import images

_NOISE_FLOOR = (2 / 255) ** 2  # added to d^2: sensor noise of a flat patch is not richness
_GREY = torch.tensor([0.299, 0.587, 0.114])


def patches(images_B3SS: Tensor, cell: int = 32) -> Tensor:
    """Return grey patches under the coarse cells: B*h*w x P x P, values in [0, 1]."""
    grey = torch.einsum("bchw,c->bhw", images_B3SS.float(), _GREY.to(images_B3SS.device))
    folded = grey.unfold(1, cell, cell).unfold(2, cell, cell)
    return folded.reshape(-1, cell, cell)


def _dwt_details(patches_nPP: Tensor, levels: int) -> Tensor:
    """Return all Haar detail coefficients of every patch in one call, n x M. The approximation band is left out: with
    it the sign of the measure is wrong.
    """
    bands = pywt.wavedec2(patches_nPP.cpu().numpy(), "haar", level=levels, axes=(-2, -1))[1:]
    flat = [torch.from_numpy(band).flatten(1) for triple in bands for band in triple]
    return torch.cat(flat, dim=1)


def _dwt_entropy(patches_nPP: Tensor) -> Tensor:
    """Return the normalised entropy of the detail energies: p = d^2 / sum d^2, H = -sum p log p / log M (paper); in [0,
    1].
    """
    energy = _dwt_details(patches_nPP, 3 if patches_nPP.shape[-1] >= 32 else 2).square() + _NOISE_FLOOR
    share = energy / energy.sum(1, keepdim=True)
    return -(share * share.log()).sum(1) / torch.log(torch.tensor(float(share.shape[1])))


def _variance(patches_nPP: Tensor) -> Tensor:
    """Return 1 / (1 + deviation in grey levels / 16): flat patches cost 1."""
    return 1 / (1 + patches_nPP.flatten(1).std(1) * 255 / 16)


def _gradient(patches_nPP: Tensor) -> Tensor:
    """Cost as `_variance`, by the mean absolute difference of neighbours."""
    across = patches_nPP.diff(dim=-1).abs().mean((1, 2)) + patches_nPP.diff(dim=-2).abs().mean((1, 2))
    return 1 / (1 + across * 255 / 8)


def _band_energy(patches_nPP: Tensor) -> Tensor:
    """Cost as `_variance`, by the root mean square of the finest detail band."""
    bands = pywt.wavedec2(patches_nPP.cpu().numpy(), "haar", level=1, axes=(-2, -1))[1]
    energy = torch.stack([torch.from_numpy(band).square().mean((1, 2)) for band in bands]).sum(0)
    return 1 / (1 + energy.sqrt() * 255 / 8)


def _inverted_dwt_entropy(patches_nPP: Tensor) -> Tensor:
    """Return 1 - H: the other sign, in which high entropy is rich and fine codes are cheap there."""
    return (1 - _dwt_entropy(patches_nPP)).clamp_min(0)


def _photograph(name: str) -> Tensor:
    with as_file(files("skimage") / "data" / f"{name}.png") as path:
        return torch.from_numpy(images.read(path)).mean(-1)


@lru_cache(maxsize=4)
def _upscaler(side: int, factor: int = 4, ridge: float = 1e-3) -> Tensor:
    """Return a linear map (side/factor)^2 x side^2, learned from free photographs (scikit-image): what a patch most
    likely is, given its view at a quarter of the resolution.
    """
    grey = torch.stack([_photograph(name) for name in ("brick", "gravel", "grass")])
    fine = grey.unfold(1, side, side // 4).unfold(2, side, side // 4).reshape(-1, side, side)
    fine = fine - fine.mean((1, 2), keepdim=True)
    x, y = F.avg_pool2d(fine[:, None], factor).flatten(1).double(), fine.flatten(1).double()
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(gram, x.T @ y).float()
    return weights


def _learned(patches_nPP: Tensor) -> Tensor:
    """Cost as `_variance`, by what a learned linear upscaler can't predict from the patch at a quarter of the
    resolution: the coarse-to-fine gap in pixels, learned once from photographs that belong to no dataset.
    """
    side = patches_nPP.shape[-1]
    fine = patches_nPP.cpu() - patches_nPP.cpu().mean((1, 2), keepdim=True)
    guess = F.avg_pool2d(fine[:, None], 4).flatten(1) @ _upscaler(side)
    left: Tensor = (fine.flatten(1) - guess).square().mean(1).sqrt()
    return 1 / (1 + left * 255 / 8)


def _none(patches_nPP: Tensor) -> Tensor:
    """Cost the same everywhere."""
    return torch.ones(len(patches_nPP))


RICHNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "dwt_entropy": _dwt_entropy,
    "variance": _variance,
    "gradient": _gradient,
    "band_energy": _band_energy,
    "learned": _learned,
    "inverted_dwt_entropy": _inverted_dwt_entropy,
    "none": _none,
}


def cost(images_B3SS: Tensor, measure: str) -> Tensor:
    """Return B x h x w costs in [0, 1], on the processor; it has no gradient, so it is computed once per image."""
    size = images_B3SS.shape[-1]
    values: Tensor = RICHNESS[measure](patches(images_B3SS)).float()
    return values.view(len(images_B3SS), size // 32, size // 32)


def _quantiles(values_n: Tensor, shares_m: Tensor) -> Tensor:
    """Return what `torch.quantile` gives, to the last bit, m: it takes 2^24 values at most, and sorts them all."""
    rank = shares_m * (len(values_n) - 1)
    below, above = rank.floor().long(), rank.ceil().long().clamp_max(len(values_n) - 1)
    places = torch.cat([below, above])
    found = torch.from_numpy(np.partition(values_n.numpy(), sorted(set(places.tolist()))))[places]
    return torch.lerp(found[: len(rank)], found[len(rank) :], rank - below)


def rescale(cost_Bhw: Tensor, valid_Bhw: Tensor, low: float = 0.05, high: float = 1.0) -> Tensor:
    """Stretch the 5-95 % range of the training set to `low`..`high`; raw DWT entropy only spans about 0.55-0.95."""
    cells = cost_Bhw[valid_Bhw]
    if cells.std() < 1e-6:
        return cost_Bhw
    bottom, top = _quantiles(cells, torch.tensor([0.05, 0.95]))
    stretched: Tensor = low + (high - low) * (cost_Bhw - bottom) / (top - bottom).clamp_min(1e-6)
    return stretched.clamp(low, high)
