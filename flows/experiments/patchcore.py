"""PatchCore (Roth et al., CVPR 2022), a plain reference on our frozen features.

B views; h w the finest grid; S side of a view; C channels; n training patches; K patches of a bank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flows.experiments.verdict import CHUNK, HALF, Verdict, features_of, to_canvas
from pvqae.core import seeding
from pvqae.core.config import Params
from pvqae.features.examples import Examples
from pvqae.model.backbones import Features, Spec, on_grid
from pvqae.model.codebook import cover, nearest
from pvqae.samples import geometry

NEIGHBOURS = 9  # the paper's b
PROJECTED = 64  # dimensions in which the coreset is chosen
WORK = 60_000_000_000  # n x K of one exact greedy choice that a processor does in a minute or two; above, by parts


def patches(features: Features) -> Tensor:
    """The two finest levels, each averaged over 3x3, on the finest grid: B x C x h x w."""
    finest = features.levels[-1].shape[-2:]
    pooled = [F.avg_pool2d(x.float(), 3, 1, 1, count_include_pad=False) for x in features.levels[-2:]]
    return torch.cat([F.interpolate(x, finest, mode="bilinear") for x in pooled], dim=1)


def coreset(x_nC: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` rows by greedy k-centre in a random projection. Where that is too much for a processor, each
    of several random parts gives its share: the bank is as large, its cover a little worse than the exact one."""
    draws = seeding.generator(seed, "coreset")
    projected = x_nC @ (torch.randn(x_nC.shape[1], PROJECTED, generator=draws) / PROJECTED**0.5)
    parts = max(1, -(-count * len(x_nC) // WORK))
    order = torch.randperm(len(x_nC), generator=draws)
    shares = [count // parts + (index < count % parts) for index in range(parts)]
    pairs = zip(order.chunk(parts), shares, strict=True)
    return torch.cat([part[cover(projected[part], share)] for part, share in pairs]).sort().values


@dataclass(frozen=True, eq=False)
class PatchCore:
    """A bank of normal patches; the distance to the nearest, the highest one re-weighted as in the paper."""

    mean: Tensor  # C
    deviation: Tensor  # C
    bank: Tensor  # K x C

    @property
    def megabytes(self) -> float:
        return (self.bank.numel() + 2 * self.mean.numel()) * HALF / 1e6

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> Verdict:
        x_BhwC = ((patches(features).movedim(1, -1)) - self.mean) / self.deviation
        valid = on_grid(valid_BSS, x_BhwC.shape[1:3])
        found = [nearest(x, self.bank) for x in torch.split(x_BhwC.flatten(0, 2), 256)]
        distance, index = (torch.cat(values).view(valid.shape) for values in zip(*found, strict=True))
        distance = distance.sqrt()
        worst = distance.masked_fill(~valid, -1).flatten().argmax()
        image = float(distance.flatten()[worst]) * self._weight(x_BhwC.flatten(0, 2)[worst], index.flatten()[worst])
        return Verdict(sample_id, image, to_canvas(distance, valid, canvas))

    def _weight(self, patch_C: Tensor, code: Tensor) -> float:
        """1 - softmax of the patch's distance to its code among the distances to the code's nearest neighbours: a patch
        near a code that is itself rare counts more."""
        around = (self.bank - self.bank[code]).square().sum(1)
        neighbours = around.topk(min(NEIGHBOURS, len(around)), largest=False).indices
        if len(neighbours) < 2:
            return 1.0
        distances = (self.bank[neighbours] - patch_C).square().sum(1).sqrt()
        own = (self.bank[code] - patch_C).square().sum().sqrt()
        return float(1 - (own - distances.logsumexp(0)).exp())


def patchcore(
    examples: Examples, groups_n: Tensor, params: Params, spec: Spec, *, share: float, standardised: bool = True
) -> PatchCore:
    """A bank of `share` of all valid patches. `standardised` scales every channel first: the taps of this backbone are
    of unequal size, and Euclidean distance would hear the loudest only."""
    parts = []
    for _, batch in examples.batches(CHUNK):
        x = patches(features_of(batch))
        parts.append(x.movedim(1, -1)[on_grid(batch.valid, x.shape[-2:])].half())
    every = torch.cat(parts).float()
    mean, deviation = every.mean(0), every.std(0).clamp_min(1e-6)
    if not standardised:
        mean, deviation = torch.zeros_like(mean), torch.ones_like(deviation)
    every = (every - mean) / deviation
    chosen = coreset(every, max(1, round(share * len(every))), params.seed)
    return PatchCore(mean, deviation, every[chosen].half().float())
