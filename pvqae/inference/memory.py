"""The memory of normality: per level, codes that cover the features of training normals, and the distance to them.

n vectors; K codes; C_r channels of level r; h_r w_r its grid. Features are averaged over 3x3 cells and whitened first:
distances are then Mahalanobis distances to the nearest normal. Measured (docs/decisions.md): covering codes on all
levels beat the residual of a trained decoder on average, and whitening helps small objects and textures alike.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae.core import config, seeding
from pvqae.model import weights
from pvqae.model.cells import cells_of, repeat_border
from pvqae.model.codebook import cover, nearest

CHUNK = 32  # views pooled at once
CELLS = 400  # vectors compared at once: their distances to all codes stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Level:
    """The codes of one resolution."""

    mean: Tensor  # C_r, of training normals
    whitening: Tensor  # C_r x C_r, makes training normals white
    codes: Tensor  # K x C_r, white; multiples of `step` from -127 to 127
    step: Tensor  # C_r: codes are kept as bytes, which halves a bundle
    owners: Tensor  # K, the group that each code was taken from; kept while fitting only

    @cached_property
    def squares(self) -> Tensor:
        """K, of the codes' lengths."""
        return self.codes.square().sum(1)

    def vectors(self, x_BChw: Tensor) -> Tensor:
        """B x h*w x C white vectors."""
        return (pooled(x_BChw).flatten(2).transpose(1, 2) - self.mean) @ self.whitening

    def distances(self, x_BChw: Tensor, valid_Bhw: Tensor, without_group: Tensor | None = None) -> Tensor:
        """B x h x w distances to the nearest code, smoothed over 3x3 cells; padding adds nothing to them.

        `without_group` (B): codes that come from that group don't count. A training image is then judged by what the
        other parts taught, as a new image will be.
        """
        maps = []
        for index, vectors in enumerate(self.vectors(x_BChw)):
            others = None if without_group is None else self.owners != without_group[index]
            every = others is None or not others.any()  # or its part owns all
            codes, squares = (self.codes, self.squares) if every else (self.codes[others], self.squares[others])
            maps.append(torch.cat([to_nearest(part, codes, squares) for part in vectors.split(CELLS)]))
        return smoothed(torch.stack(maps).view(valid_Bhw.shape), valid_Bhw)


def to_nearest(vectors_nC: Tensor, codes_KC: Tensor, squares_K: Tensor | None = None) -> Tensor:
    """Distance of each vector to its nearest code, n. Taken anew from the two: of `nearest`'s difference of large
    squares nothing but rounding is left where a vector is a code, as on a plain background."""
    return (vectors_nC - codes_KC[nearest(vectors_nC, codes_KC, squares_K)[1]]).square().sum(1).sqrt()


def smoothed(distances_Bhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Mean over 3x3 cells, padding taking the value of the nearest image cell."""
    grid = repeat_border(distances_Bhw, valid_Bhw)
    return F.avg_pool2d(grid[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def pooled(x_BChw: Tensor) -> Tensor:
    """Mean over 3x3 cells. Cells on padding count: their pixels repeat the image's border, and leaving them out makes
    border cells noisier (measured: docs/decisions.md)."""
    return F.avg_pool2d(x_BChw, 3, 1, 1, count_include_pad=False)


def whitening(vectors_nC: Tensor, ridge: float) -> Tensor:
    """C x C symmetric whitening of the standardised vectors; `ridge`, relative to their mean variance, is added to
    every direction: from few images the thin directions of the covariance are guesses.
    """
    spread = vectors_nC.std(0)
    deviation = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    standard = ((vectors_nC - vectors_nC.mean(0)) / deviation).double()
    values, directions = torch.linalg.eigh(standard.T @ standard / len(standard))
    values = values.clamp_min(0)
    scale = (values + ridge * values.mean().clamp_min(1e-6)).rsqrt()
    white: Tensor = (directions * scale) @ directions.T / deviation[:, None]
    return white.float()


def fit_level(
    x_nChw: Tensor, valid_nSS: Tensor, group_n: Tensor, settings: config.Memory, seed: int, name: str
) -> Level:
    """Cover the valid cells of one level of n views by codes, as `settings` say; at most `settings.patches` cells are
    drawn first. `group_n`: the group of each view."""
    valid = cells_of(valid_nSS, x_nChw.shape[-2:])
    cells, views = valid.flatten().nonzero()[:, 0], valid[0].numel()
    generator = seeding.generator(seed, "memory", name)
    drawn = cells[torch.randperm(len(cells), generator=generator)[: settings.patches].sort().values]
    vectors = _at(x_nChw, valid, drawn)
    mean, white = vectors.mean(0), whitening(vectors, settings.ridge).half().float()
    standard = (vectors - mean) @ white
    chosen = cover(standard, settings.codes)
    # Rounded now, as on disk: what is calibrated is what is shipped.
    codes, step = rounded(standard[chosen])
    return Level(mean, white, codes, step, group_n[drawn[chosen] // views])


def rounded(codes_KC: Tensor) -> tuple[Tensor, Tensor]:
    """The codes as multiples of a step per channel that a signed byte can hold, and the steps."""
    step = weights.steps(codes_KC, dim=0)
    return (codes_KC / step).round() * step, step


def as_bytes(level: Level) -> Tensor:
    """The codes as K x C_r signed bytes, in steps."""
    return (level.codes / level.step).round().to(torch.int8)


def _at(x_nChw: Tensor, valid_nhw: Tensor, drawn: Tensor) -> Tensor:
    """The pooled vectors of the drawn cells, a few views at a time: all of them at once would fill the memory."""
    views, parts = valid_nhw[0].numel(), []
    for start in range(0, len(x_nChw), CHUNK):
        part = pooled(x_nChw[start : start + CHUNK].float())
        inside = drawn[(drawn >= start * views) & (drawn < (start + CHUNK) * views)] - start * views
        parts.append(part.movedim(1, -1).flatten(0, 2)[inside])
    return torch.cat(parts)
