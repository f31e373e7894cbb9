"""What is estimated from normal images in closed form: memory codes, whitenings and the statistics of measures.

n vectors or views; K codes; C channels of a memory, h w its grid; T channels of the decoder's target.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pvqae.core import seeding, tensors
from pvqae.inference.measures import Memory, PlaceMemory, Projection
from pvqae.inference.scoring import Normal
from pvqae.model.autoencoder import cover

_ROUNDING = 2**-11  # relative, of half precision, in which networks and features are kept
_FOLDS = 4  # a normal is compared with what the other folds' places are like
_RIDGE = 0.01  # of the mean variance, added to each
_CLOSEST = 0.5  # of the mean spacing, at least: equal codes, as of a plain background, have none of their own
_PSEUDO = 8  # views of the global statistics that each location starts with: few own views say little


def residual_whitening(residuals_nT: Tensor, ridge: float = 0.01) -> Tensor:
    """Return the T x T matrix that makes normal residuals white; `ridge` is relative to their mean variance."""
    centred = residuals_nT - residuals_nT.mean(0)
    covariance = centred.T @ centred / len(centred)
    covariance += ridge * covariance.diagonal().mean() * torch.eye(len(covariance))
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(covariance.double()))
    return factor.float()


@dataclass(frozen=True, eq=False)
class CellSample:
    """At most so many valid cells of n views, drawn at random, that a memory is chosen from."""

    cells: Tensor  # m, positions in the flattened n x h x w grid, ascending
    grid: tuple[int, int]

    @staticmethod
    def draw(valid_nhw: Tensor, most: int, seed: int, name: str) -> "CellSample":
        """Draw `most` of the valid cells at random; `name`d memories draw differently."""
        cells, (height, width) = valid_nhw.flatten().nonzero()[:, 0], valid_nhw.shape[-2:]
        order = torch.randperm(len(cells), generator=seeding.generator(seed, "memory", name))
        return CellSample(cells[order[:most].sort().values], (height, width))

    @property
    def views(self) -> Tensor:
        """The view that each cell is in, m."""
        return self.cells // (self.grid[0] * self.grid[1])

    def vectors(self, x_BChw: Tensor, start: int) -> Tensor:
        """Return the vectors of the cells that are in the views `start`, `start` + 1, ..., start + B - 1."""
        size = self.grid[0] * self.grid[1]
        inside = self.cells[(self.cells >= start * size) & (self.cells < (start + len(x_BChw)) * size)] - start * size
        vectors: Tensor = x_BChw.flatten(2)[inside // size, :, inside % size]
        return vectors


def fit_memory(
    vectors_mC: Tensor, group_m: Tensor, count: int, width: int = 0, seed: int = 0, neighbours: int = 0
) -> Memory:
    """Cover m vectors with at most `count` codes. `group_m`: the group of each. Vectors of more than `width` channels
    are projected to it (0: never), standardised before: a channel that is loud would drown the others. The spacing of a
    code is its mean distance to so many `neighbours` among the codes (0: distances stay as they are).
    """
    mean, spread = vectors_mC.mean(0), vectors_mC.std(0, correction=0)
    scale = torch.where(spread > 1e-6, spread, torch.ones_like(spread)).reciprocal()
    standard, channels = (vectors_mC - mean) * scale, vectors_mC.shape[1]
    projection = None
    if 0 < width < channels:
        projection = Projection.draw(channels, width, seeding.generator(seed, "memory", "projection", str(channels)))
        standard = standard @ projection.matrix
    chosen = cover(standard, count)
    # Rounded now, as on disk: what is calibrated is what is shipped.
    codes, step = _rounded(standard[chosen])
    return Memory(mean, scale, codes, step, group_m[chosen], projection, _spacing(codes, neighbours))


def _spacing(codes_KC: Tensor, neighbours: int) -> Tensor | None:
    """Return the mean distance of each code to the nearest others, K, in half precision's values; None for none."""
    if neighbours == 0 or len(codes_KC) < 2:
        return None
    count, squares = min(neighbours, len(codes_KC) - 1), codes_KC.square().sum(1)
    between = torch.addmm(squares, codes_KC, codes_KC.T, alpha=-2).add_(squares[:, None])
    between.fill_diagonal_(torch.inf)
    spacing = between.topk(count, largest=False).values.clamp_min(0).sqrt().mean(1)
    apart = spacing[spacing > _ROUNDING]
    return spacing.clamp_min(_CLOSEST * float(apart.mean())).half().float() if len(apart) else None


class PlaceSums:
    """Sums of normal features by place and fold, taken batch by batch, from which a `PlaceMemory` is fitted."""

    def __init__(self, groups_n: Tensor, width: int, seed: int):
        """Take groups by number, of each view. Wider features are projected to `width` channels (0: never)."""
        there = torch.unique(groups_n)
        self.count = min(_FOLDS, len(there))
        self.folds = torch.zeros(int(there.max()) + 1, dtype=torch.long)
        self.folds[there] = torch.arange(len(there)) % self.count
        self.width, self.seed = width, seed
        self.projection: Projection | None = None
        self.pivot = self.views = self.totals = self.squares = torch.empty(0)

    def add(self, x_BChw: Tensor, valid_Bhw: Tensor, group_B: Tensor) -> None:
        """Add views. Cells on padding don't count."""
        x, channels = x_BChw.movedim(1, -1), x_BChw.shape[1]
        if self.projection is None and 0 < self.width < channels:
            generator = seeding.generator(self.seed, "memory", "places", str(channels))
            self.projection = Projection.draw(channels, self.width, generator)
        x = x if self.projection is None else x @ self.projection.matrix
        if not len(self.pivot):
            self.pivot = x[valid_Bhw].mean(0)  # squares of what is far from zero would lose the small differences
            self.views = torch.zeros(self.count, *x.shape[1:3])
            self.totals = torch.zeros(*self.views.shape, len(self.pivot))
            self.squares = torch.zeros(self.count, len(self.pivot), len(self.pivot), dtype=torch.float64)
        x = (x - self.pivot) * valid_Bhw[..., None]
        for fold, one, valid in zip(self.folds[group_B].tolist(), x, valid_Bhw, strict=True):
            self.views[fold] += valid
            self.totals[fold] += one
            cells = one.flatten(0, 1)
            self.squares[fold] += cells.T @ cells

    def fitted(self) -> PlaceMemory:
        """Return what all normals say, with what those outside of each fold do."""
        every = torch.arange(self.count)
        without = tuple(self._of(every[every != fold]) for fold in range(self.count) if self.count > 1)
        return replace(self._of(every), without=without, folds=self.folds)

    def _of(self, folds: Tensor) -> PlaceMemory:
        views, totals = self.views[folds].sum(0)[..., None], self.totals[folds].sum(0)
        overall = totals.sum((0, 1)) / views.sum()
        # A place starts with one view of all places: a few views alone have next to no variance around their own mean.
        # Rounded now, as on disk: what is calibrated is what is shipped.
        places, step = _rounded((totals + overall) / (views + 1) - overall)
        means = places + overall
        cross = torch.einsum("hwc,hwd->cd", means, totals).double()
        kept = torch.einsum("hwc,hwd->cd", means * views, means).double()
        covariance = (self.squares[folds].sum(0) - cross - cross.T + kept) / views.sum().double()
        ridge = _RIDGE * covariance.diagonal().mean() + 1e-6
        unit = torch.eye(len(covariance), dtype=torch.float64)
        root = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance + ridge * unit), unit, upper=False)
        return PlaceMemory(self.pivot + overall, places, step, root.float(), self.projection)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ... x C values as multiples of a step per channel that a signed byte can hold, and the steps."""
    step = tensors.steps(x.flatten(0, -2), dim=0)
    return (x / step).round() * step, step


def fit_statistics(values_nhw: Tensor, valid_nhw: Tensor, grain: float = 0.0) -> Normal:
    """Return statistics over valid cells.

    Those of a location are drawn towards the global ones, as if it had seen `_PSEUDO` views of them: few views make a
    local deviation small by chance, and the score huge. No deviation is below `grain`, which is how far a value moves
    when the same part is photographed again (see `fitting.fit`).
    """
    every = values_nhw[valid_nhw]
    mean, deviation = every.mean(), every.std(correction=min(1, len(every) - 1))
    deviation = deviation.clamp_min(floor(float(mean), grain))
    weight = valid_nhw.to(values_nhw)
    count = weight.sum(0) + _PSEUDO
    kept = torch.where(valid_nhw, values_nhw, mean)
    local = (kept * weight).sum(0).add(_PSEUDO * mean) / count
    squares = ((kept - local).square() * weight).sum(0)
    return Normal(local, ((squares + _PSEUDO * deviation.square()) / count).sqrt(), mean, deviation)


def floor(mean: float, grain: float) -> float:
    """Return the least deviation of values around `mean` that means anything: below it is rounding or camera noise."""
    return max(grain, _ROUNDING * max(1.0, abs(mean)))
