"""Measures that the product does not have, as candidates of `readouts`: Gaussians of places, joint features averaged
again.

B views; N = h*w cells of stride 8; D of the channels of strides 4, 8 and 16, drawn at random; f folds of the groups;
G covariances.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flows.experiments.trial import BenchmarkContext
from pvqae.calibration import fitting
from pvqae.core import config, seeding
from pvqae.datasets import splits
from pvqae.features.examples import Batch, Examples
from pvqae.inference.measures import JOINT, Networks, Raw, measure
from pvqae.model.backbones import Backbone, Features, _to_grid, on_grid
from pvqae.model.layers import averaged

TWICE = "joint twice"
_FOLDS, _CHUNK = 4, 16
_RIDGE = 0.01  # of the mean variance


@dataclass(frozen=True)
class _Shape:
    """Of a Gaussian measure: how many channels, and how many places share a covariance."""

    channels: int
    side: int  # of a square of places that share one; 0: all do

    def groups(self, height: int, width: int) -> Tensor:
        """Return the covariance of each place, N."""
        if not self.side:
            return torch.zeros(height * width, dtype=torch.long)
        rows, columns = torch.arange(height) // self.side, torch.arange(width) // self.side
        return (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()


# A mean for each place and a covariance for each place (as PaDiM), for squares of places, or for all.
PLACES = {
    "places": _Shape(100, 1),
    "places of 40": _Shape(40, 1),
    "squares": _Shape(100, 10),
    "one covariance": _Shape(100, 0),
}
_MOST = max(shape.channels for shape in PLACES.values())


@dataclass(frozen=True, eq=False)
class _Gaussians:
    """A mean for each place and a covariance that some of them share."""

    mean: Tensor  # N x D
    root: Tensor  # G x D x D, of the inverse covariance
    group: Tensor  # N, the covariance of each place

    @staticmethod
    def of(count: int, total_ND: Tensor, squares_NDD: Tensor, group_N: Tensor) -> "_Gaussians":
        """Fit by sums over `count` views."""
        mean = total_ND / count
        number, channels = int(group_N.max()) + 1, mean.shape[1]
        covariance = torch.zeros(number, channels, channels)
        for place, own in enumerate(group_N.tolist()):  # as many copies of all as covariances would not fit
            covariance[own] += squares_NDD[place] / count - torch.outer(mean[place], mean[place])
        covariance /= torch.bincount(group_N)[:, None, None]
        ridge = _RIDGE * covariance.diagonal(dim1=1, dim2=2).mean() + 1e-6
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        unit = torch.eye(channels).expand_as(covariance)
        root = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unit, upper=False)
        return _Gaussians(mean, root, group_N)

    def distances(self, x_BND: Tensor) -> Tensor:
        """Return the Mahalanobis distance of each cell, B x N."""
        apart, found = x_BND - self.mean, torch.empty(x_BND.shape[:2])
        if len(self.root) == len(self.mean):
            return torch.einsum("nde,bne->bnd", self.root, apart).square().mean(2).sqrt()
        for number, root in enumerate(self.root):
            own = self.group == number
            found[:, own] = (apart[:, own] @ root.T).square().mean(2).sqrt()
        return found


@dataclass(frozen=True, eq=False)
class _Places:
    """One Gaussian measure, fitted to all normals, and to those without each fold."""

    channels: int
    without: list[_Gaussians]
    every: _Gaussians

    def distances(self, x_BND: Tensor, folds_B: Tensor | None) -> Tensor:
        """Return the distances; of normals by what the other folds taught."""
        x = x_BND[..., : self.channels]
        if folds_B is None:
            return self.every.distances(x)
        return torch.cat([self.without[f].distances(one[None]) for f, one in zip(folds_B.tolist(), x, strict=True)])


class _Twice(nn.Module):
    """A backbone whose joint features are averaged over 3x3 cells once more."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.spec, self.own = backbone.spec, [backbone]  # not registered: it is another's

    def joint(self, features: Features) -> Tensor:
        """Return them, B x C x h x w."""
        return averaged(self.own[0].joint(features))


@dataclass(frozen=True, eq=False)
class Further:
    """The further measures of a class, fitted to its normals."""

    twice: Networks  # whose one memory is of joint features averaged again
    finer: BenchmarkContext  # whose features have stride 4, too, and are not averaged
    order: Tensor  # the channels that are read, in the order of a draw
    places: Mapping[str, _Places]  # by the keys of PLACES

    @torch.no_grad()
    def of_normals(self, raw: Raw, batch: Batch, indices: Tensor, groups_B: Tensor) -> Raw:
        """Return `raw`, of the normals `indices`, with the further measures by what other groups taught."""
        assert batch.features is not None, "places are of frozen features"
        return self._added(raw, batch.features, batch.valid, self.finer.examples.batch(indices), groups_B)

    @torch.no_grad()
    def of_test(self, raw: Raw, features: Features, valid_BSS: Tensor, position: int) -> Raw:
        """Return `raw`, of the views of test image `position`, with the further measures."""
        finer = self.finer.unseen
        return self._added(raw, features, valid_BSS, finer.batch((finer.rows == position).nonzero()[:, 0]), None)

    def _added(self, raw: Raw, features: Features, valid_BSS: Tensor, finer: Batch, groups_B: Tensor | None) -> Raw:
        assert finer.features is not None, "places are of frozen features"
        found = {TWICE: measure(self.twice, features, valid_BSS, groups_B).maps[JOINT]}
        x_BDhw = _cells(finer.features, self.order)
        valid, x = on_grid(valid_BSS, x_BDhw.shape[-2:]), x_BDhw.flatten(2).transpose(1, 2)
        for name, own in self.places.items():
            folds = None if groups_B is None else groups_B % _FOLDS
            found[name] = own.distances(x, folds).view(valid.shape)
        return Raw({**raw.maps, **found}, {**raw.valid, **dict.fromkeys(found, valid)}, raw.ask)


@torch.no_grad()
def fit(context: BenchmarkContext, params: config.Params) -> Further:
    """Fit to the normals of `context` that are learnt from."""
    backbone, groups = context.backbone, fitting.group_numbers(context.normals, context.examples)
    twice: Backbone = _Twice(backbone)  # type: ignore[assignment]
    score = params.score.model_copy(update={"image": {JOINT: 1.0}, "map": {JOINT: 1.0}})
    only = params.model_copy(update={"score": score})
    memories = fitting.fit_memories(twice, context.examples, groups, only, splits.FULL)
    model = params.model.model_copy(update={"levels": 4})
    finer = BenchmarkContext(context.subject, params.model_copy(update={"model": model}), context.work, context.keep)
    channels = sum(finer.backbone.spec.channels[1:])
    order = torch.randperm(channels, generator=seeding.generator(params.seed, "places"))[:_MOST]
    return Further(Networks(twice, None, memories, None), finer, order, _fitted(finer.examples, groups % _FOLDS, order))


def _fitted(examples: Examples, folds_n: Tensor, order: Tensor) -> dict[str, _Places]:
    """Return the Gaussian measures; all come from one set of sums over the views of each fold."""
    total, squares, grid, pivot = torch.empty(0), torch.empty(0), (0, 0), torch.empty(0)
    for indices, batch in examples.batches(_CHUNK):
        assert batch.features is not None, "places are of frozen features"
        x_BDhw = _cells(batch.features, order)
        x, own = x_BDhw.flatten(2).transpose(1, 2), folds_n[indices]
        if not len(total):
            grid = (x_BDhw.shape[-2], x_BDhw.shape[-1])
            pivot = x.mean(0)  # squares of what is far from zero would lose the small differences
            total = torch.zeros(_FOLDS, *x.shape[1:])
            squares = torch.zeros(*total.shape, x.shape[2])
        x = x - pivot
        for fold in torch.unique(own).tolist():
            total[fold] += x[own == fold].sum(0)
            squares[fold] += torch.einsum("bnd,bne->nde", x[own == fold], x[own == fold])
    counts, found = torch.bincount(folds_n, minlength=_FOLDS), {}
    for name, shape in PLACES.items():
        few, group = slice(shape.channels), shape.groups(*grid)

        def of(left: list[int], few: slice = few, group: Tensor = group) -> _Gaussians:
            some = squares[left, :, few, few].sum(0)
            one = _Gaussians.of(int(counts[left].sum()), total[left, :, few].sum(0), some, group)
            return replace(one, mean=one.mean + pivot[:, few])

        without = [of([f for f in range(_FOLDS) if f != fold]) for fold in range(_FOLDS)]
        found[name] = _Places(shape.channels, without, of([*range(_FOLDS)]))
    return found


def _cells(features: Features, order: Tensor) -> Tensor:
    """Return the drawn channels of strides 16, 8 and 4 at the places of stride 8, B x D x h x w; none is averaged."""
    _, middle, fine, finest = features.levels
    grid = fine.shape[-2:]
    every = torch.cat([_to_grid(x.float(), grid) for x in (middle, fine, finest)], dim=1)
    return every[:, order]
