"""The memory of normality: per level, codes that cover the features of training normals, and the distance to them.

n vectors; K codes; C_r channels of level r; h_r w_r its grid. Measured: covering codes on all levels beat the residual
of a trained decoder on average (docs/decisions.md).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae import seeding
from pvqae.model.codebook import cover, nearest
from pvqae.training.examples import on_grid, repeat_border


@dataclass(frozen=True, eq=False)
class Level:
    """The codes of one resolution."""

    mean: Tensor  # C_r, of training normals
    deviation: Tensor  # C_r
    codes: Tensor  # K x C_r, standardised
    owners: Tensor  # K, the group that each code was taken from; kept while fitting only

    def vectors(self, x_BChw: Tensor) -> Tensor:
        """B x h*w x C standardised vectors."""
        return (x_BChw.flatten(2).transpose(1, 2) - self.mean) / self.deviation

    def distances(self, x_BChw: Tensor, valid_Bhw: Tensor, without_group: Tensor | None = None) -> Tensor:
        """B x h x w distances to the nearest code, smoothed over 3x3 cells; padding adds nothing to them.

        `without_group` (B): codes that come from that group don't count. A training image is then judged by what the
        other parts taught, as a new image will be.
        """
        maps = []
        for index, vectors in enumerate(self.vectors(x_BChw)):
            codes = self.codes if without_group is None else self.codes[self.owners != without_group[index]]
            maps.append(nearest(vectors, codes)[0].sqrt())
        grid = repeat_border(torch.stack(maps).view(valid_Bhw.shape), valid_Bhw)
        return F.avg_pool2d(grid[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def fit_level(
    x_nChw: Tensor, valid_nSS: Tensor, group_n: Tensor, codes: int, patches: int, seed: int, name: str
) -> Level:
    """Cover the valid cells of one level of n views by at most `codes` codes; `patches` cells are drawn first."""
    valid = on_grid(valid_nSS, x_nChw.shape[-2:])
    vectors = x_nChw.movedim(1, -1)[valid].float()
    owners = group_n[:, None, None].expand(valid.shape)[valid]
    mean, spread = vectors.mean(0), vectors.std(0)
    deviation = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    drawn = torch.randperm(len(vectors), generator=seeding.generator(seed, "memory", name))[:patches].sort().values
    standard = (vectors[drawn] - mean) / deviation
    chosen = cover(standard, codes)
    # Half precision on disk: round now, so that what is calibrated is what is shipped.
    return Level(mean, deviation, standard[chosen].half().float(), owners[drawn][chosen])
