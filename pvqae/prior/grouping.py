"""Priors that divide images among themselves (METHOD section 4); which classes share one says `groups`.

B views; R levels; h w the coarsest grid; k clusters; F numbers that describe an allocation.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core import config
from pvqae.core.files import read_tensors
from pvqae.prior import prior as single
from pvqae.prior.groups import GROUPINGS as GROUPINGS
from pvqae.prior.prior import BudgetPrior, Expected

REGIONS = 4  # an allocation is described by the mean logits of 4 x 4 regions
LEAST = 8  # views a cluster must have: fewer teach a prior nothing but themselves


def most_clusters(settings: config.Prior) -> int:
    """How many priors a group may have."""
    return settings.clusters if settings.grouping == "clustered" else 1


def describe(logits_BRhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Mean router logits of each region's valid cells, B x F; zero where a region is all padding."""
    height, width = valid_Bhw.shape[-2:]
    regions = (min(REGIONS, height), min(REGIONS, width))
    valid = valid_Bhw[:, None].float()
    share = F.adaptive_avg_pool2d(valid, regions)
    total = F.adaptive_avg_pool2d(logits_BRhw.float() * valid, regions)
    return (total / share.clamp_min(1e-6)).flatten(1)


def centres(described_BF: Tensor, most: int, seed: int) -> Tensor:
    """k-means centres k x F, k <= `most` and so few that each has `LEAST` views. The same on every run."""
    different = len(np.unique(described_BF.numpy(), axis=0))
    for k in range(min(most, len(described_BF) // LEAST, different), 1, -1):
        labels = _labels(described_BF, k, seed)
        if torch.bincount(labels, minlength=k).min() >= LEAST:
            # Not k-means' own centres: its threads add up in any order.
            return torch.stack([described_BF[labels == c].mean(0) for c in range(k)])
    return described_BF.mean(0, keepdim=True)


def _labels(described_BF: Tensor, k: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans  # a second that the other groupings save

    found = KMeans(k, n_init=10, random_state=seed % 2**32).fit_predict(described_BF.double().numpy())
    return torch.from_numpy(found).long()


class Clustered(nn.Module):
    """k priors; a view is expected to be as those normals were whose allocations lie nearest to its own."""

    centres: Tensor

    def __init__(self, centres_kF: Tensor, priors: list[BudgetPrior]):
        super().__init__()
        self.register_buffer("centres", centres_kF)
        self.members = priors
        self.priors = nn.ModuleList(priors)  # registers them

    def assign(self, logits_BRhw: Tensor, valid_Bhw: Tensor) -> Tensor:
        """B, the cluster of each view."""
        away = torch.cdist(describe(logits_BRhw, valid_Bhw), self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        return away.argmin(1)


Prior = BudgetPrior | Clustered


def from_tensors(tensors: dict[str, Tensor], grid: tuple[int, int], levels: int, width: int) -> Prior:
    """The prior whose state these tensors are, in evaluation mode."""
    found: Prior = BudgetPrior(grid, levels, width)
    if (centres_kF := tensors.get("centres")) is not None:
        found = Clustered(centres_kF.clone(), [BudgetPrior(grid, levels, width) for _ in centres_kF])
    found.load_state_dict(tensors)
    found.eval().requires_grad_(False)
    return found


@torch.no_grad()
def expect(prior: Prior, logits_BRhw: Tensor, valid_Bhw: Tensor) -> Expected:
    """The expectation of each cell while it and its neighbours are hidden; B x N x R each."""
    if isinstance(prior, BudgetPrior):
        return single.expect(prior, logits_BRhw, valid_Bhw)
    chosen = prior.assign(logits_BRhw, valid_Bhw)
    batch, levels = logits_BRhw.shape[:2]
    empty = logits_BRhw.new_empty(batch, valid_Bhw[0].numel(), levels, dtype=torch.float32)
    out = Expected(empty, empty.clone(), empty.clone())
    for cluster in range(len(prior.centres)):
        mine = chosen == cluster
        if mine.any():
            found = single.expect(prior.members[cluster], logits_BRhw[mine], valid_Bhw[mine])
            for part, values in zip(out, found, strict=True):
                part[mine] = values
    return out


def load_prior(weights: Path, grid: tuple[int, int], levels: int, width: int) -> Prior:
    """The prior of a weights file, in evaluation mode."""
    return from_tensors(read_tensors(weights), grid, levels, width)


def prior_facts(folder: Path, category: str) -> dict[str, float | None]:
    """`prior_cross_entropy` and `frequency_cross_entropy` of a class's unseen normals, in nats per cell."""
    found: dict[str, float | None] = json.loads((folder / "facts.json").read_text("utf-8"))[category]
    return found
