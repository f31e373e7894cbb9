"""Measures that the product does not have, as candidates of `readouts`: Gaussians of places, joint features averaged
again.

B views; N = h*w cells of the joint features' grid; D of their channels, drawn at random; f folds of the groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flows.experiments.trial import BenchmarkContext
from pvqae.calibration import fitting
from pvqae.core import config, seeding
from pvqae.datasets import splits
from pvqae.features.examples import Examples
from pvqae.inference.measures import JOINT, Memory, Networks, Raw, measure
from pvqae.model.backbones import Backbone, Features, on_grid
from pvqae.model.layers import averaged

PLACES, TWICE = "padim", "joint twice"
_CHANNELS, _FOLDS, _CHUNK = 100, 4, 16
_RIDGE = 0.01  # of standardised channels, PaDiM's


@dataclass(frozen=True, eq=False)
class _Gaussians:
    """Mean and covariance of each place; the fewer the views, the nearer is the covariance to that of all places."""

    mean: Tensor  # N x D
    root: Tensor  # N x D x D, of the inverse covariance

    @staticmethod
    def of(count: int, total_ND: Tensor, squares_NDD: Tensor) -> "_Gaussians":
        """Fit by sums over `count` views."""
        mean, channels = total_ND / count, total_ND.shape[1]
        own = squares_NDD / count - mean[:, :, None] * mean[:, None]
        share = channels / (count + channels)
        covariance = (1 - share) * own + share * own.mean(0)
        covariance.diagonal(dim1=1, dim2=2).add_(_RIDGE * own.mean(0).diagonal().mean() + 1e-6)
        unit = torch.eye(channels).expand_as(covariance)
        return _Gaussians(mean, torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unit, upper=False))

    def distances(self, x_BND: Tensor) -> Tensor:
        """Return the Mahalanobis distance of each cell, B x N."""
        return torch.einsum("nde,bne->bnd", self.root, x_BND - self.mean).square().mean(2).sqrt()


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

    backbone: Backbone
    twice: Networks  # whose one memory is of joint features averaged again
    channels: Tensor  # D
    without: list[_Gaussians]  # of each fold: what the other folds taught
    every: _Gaussians

    @torch.no_grad()
    def add(self, raw: Raw, features: Features, valid_BSS: Tensor, groups_B: Tensor | None = None) -> Raw:
        """Return `raw` with the further measures. `groups_B`: of normals, judged without what their groups taught."""
        memory = measure(self.twice, features, valid_BSS, groups_B).maps[JOINT]
        x = _cells(self.backbone.joint(features), self.channels)
        if groups_B is None:
            flat = self.every.distances(x)
        else:
            folds = (groups_B % _FOLDS).tolist()
            flat = torch.cat([self.without[fold].distances(one[None]) for fold, one in zip(folds, x, strict=True)])
        valid = on_grid(valid_BSS, memory.shape[-2:])
        places = Memory.smoothed(flat.view(valid.shape), valid)
        return Raw({**raw.maps, TWICE: memory, PLACES: places}, {**raw.valid, TWICE: valid, PLACES: valid}, raw.ask)


@torch.no_grad()
def fit(context: BenchmarkContext, params: config.Params) -> Further:
    """Fit to the normals of `context` that are learnt from."""
    backbone, groups = context.backbone, fitting.group_numbers(context.normals, context.examples)
    twice: Backbone = _Twice(backbone)  # type: ignore[assignment]
    score = params.score.model_copy(update={"image": {JOINT: 1.0}, "map": {JOINT: 1.0}})
    only = params.model_copy(update={"score": score})
    memories = fitting.fit_memories(twice, context.examples, groups, only, splits.FULL)
    places = _places(backbone, context.examples, groups % _FOLDS, params.seed)
    return Further(backbone, Networks(twice, None, memories, None), *places)


def _places(
    backbone: Backbone, examples: Examples, folds_n: Tensor, seed: int
) -> tuple[Tensor, list[_Gaussians], _Gaussians]:
    """Return the channels that are read, the Gaussians of all folds but each, and those of all folds."""
    channels, total, squares = torch.empty(0), torch.empty(0), torch.empty(0)
    for indices, batch in examples.batches(_CHUNK):
        assert batch.features is not None, "places are of frozen features"
        joint = backbone.joint(batch.features)
        if not len(channels):
            order = torch.randperm(joint.shape[1], generator=seeding.generator(seed, PLACES))
            channels = order[:_CHANNELS].sort().values
            total = torch.zeros(_FOLDS, joint[0, 0].numel(), len(channels))
            squares = torch.zeros(*total.shape, len(channels))
        x, own = _cells(joint, channels), folds_n[indices]
        for fold in torch.unique(own).tolist():
            total[fold] += x[own == fold].sum(0)
            squares[fold] += torch.einsum("bnd,bne->nde", x[own == fold], x[own == fold])
    count, views = torch.bincount(folds_n, minlength=_FOLDS), len(folds_n)
    every = total.sum(0), squares.sum(0)
    without = [
        _Gaussians.of(views - int(count[fold]), every[0] - total[fold], every[1] - squares[fold])
        for fold in range(_FOLDS)
    ]
    return channels, without, _Gaussians.of(views, *every)


def _cells(joint_BChw: Tensor, channels_D: Tensor) -> Tensor:
    """Return the chosen channels of each cell, B x N x D."""
    return joint_BChw[:, channels_D].float().flatten(2).transpose(1, 2)
