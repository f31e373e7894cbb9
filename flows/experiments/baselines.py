"""Yardsticks on the same frozen features, splits and geometry: what a user would pick instead. None is a product.

B views; h w the finest grid; S side of a view; C channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flows.experiments.patchcore import patchcore
from flows.experiments.verdict import CHUNK, HALF, Detector, Verdict, features_of, to_canvas
from pvqae.calibration import normals
from pvqae.core import seeding
from pvqae.core.config import Params
from pvqae.datasets import folds
from pvqae.features.examples import Examples
from pvqae.inference import measures, readout
from pvqae.inference.measures import whiten
from pvqae.inference.readout import SCALES
from pvqae.model.backbones import Features, Spec, on_grid, repeat_border
from pvqae.samples import geometry

TOP = 0.01  # of the cells, for the image scores


@dataclass(frozen=True, eq=False)
class Residual:
    """Some channels of the target: residual to the per-location training mean, whitened."""

    channels: slice
    mean: Tensor  # C x h x w
    whitening: Tensor  # C x C
    normal: readout.Normal  # of the whitened length

    def lengths(self, features: Features) -> Tensor:
        return whiten(features.target[:, self.channels] - self.mean, self.whitening)


@dataclass(frozen=True, eq=False)
class Control:
    """No model. The fine channels make the map; the image score adds those of the coarsest tap, each in deviations of
    its place. With one covariance for all channels the map is worse (toothbrush: AUPRO .60, this way .84)."""

    fine: Residual
    coarse: Residual

    @property
    def megabytes(self) -> float:
        stored = [(r.mean, r.whitening, r.normal.mean, r.normal.deviation) for r in (self.fine, self.coarse)]
        return sum(x.numel() for parts in stored for x in parts) * HALF / 1e6

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> Verdict:
        lengths = [part.lengths(features) for part in (self.fine, self.coarse)]
        normals = (self.fine.normal, self.coarse.normal)
        valid = on_grid(valid_BSS, lengths[0].shape[-2:])
        total = sum(SCALES["location"](n, x)[valid] for n, x in zip(normals, lengths, strict=True))
        assert isinstance(total, Tensor)
        return Verdict(sample_id, readout.top_mean(total, TOP), to_canvas(lengths[0], valid, canvas))


def control(examples: Examples, groups_n: Tensor, params: Params, spec: Spec) -> Control:
    """Mean per place, full covariance of the residuals with a ridge of 1 %, spread per place."""
    edge = sum(spec.groups[:-1])
    return Control(*(_residual(examples, params, channels) for channels in (slice(0, edge), slice(edge, None))))


def _residual(examples: Examples, params: Params, channels: slice) -> Residual:
    total, weight = torch.zeros(1), torch.zeros(1)
    for x, valid in _targets(examples, channels):
        total, weight = total + (x * valid).sum(0), weight + valid.sum(0)
    everywhere = (total.sum((1, 2)) / weight.sum())[:, None, None]
    mean = torch.where(weight > 0, total / weight.clamp_min(1), everywhere)
    cells = []
    for number, (x, valid) in enumerate(_targets(examples, channels)):
        left = (x - mean).movedim(1, -1)[valid[:, 0]]
        draws = seeding.generator(params.seed, "control", number)
        cells.append(left[torch.randperm(len(left), generator=draws)[: len(left) // 4 + 1]])
    whitening = normals.residual_whitening(torch.cat(cells))
    pairs = [(whiten(x - mean, whitening), valid[:, 0]) for x, valid in _targets(examples, channels)]
    lengths, valids = (torch.cat(values) for values in zip(*pairs, strict=True))
    return Residual(channels, mean, whitening, normals.fit_statistics(lengths, valids))


def _targets(examples: Examples, channels: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """B x C x h x w and B x 1 x h x w."""
    for _, batch in examples.batches(CHUNK):
        target = features_of(batch).target[:, channels]
        yield target, on_grid(batch.valid, target.shape[-2:])[:, None]


@dataclass(frozen=True, eq=False)
class Covering:
    """One covering codebook per level; distances in deviations of normals, levels added."""

    levels: tuple[measures.Level, ...]
    normals: tuple[readout.Normal, ...]

    @property
    def megabytes(self) -> float:
        codes = sum(level.codes.numel() + 2 * level.mean.numel() for level in self.levels)
        return (codes + sum(2 * normal.mean.numel() for normal in self.normals)) * HALF / 1e6

    def _total(self, distances: list[Tensor], valid_BSS: Tensor, scale: str) -> Tensor:
        grid = distances[-1].shape[-2:]
        scaled = [
            repeat_border(SCALES[scale](normal, x), on_grid(valid_BSS, x.shape[-2:]))
            for normal, x in zip(self.normals, distances, strict=True)
        ]
        return torch.stack([F.interpolate(x[:, None], grid, mode="bilinear")[:, 0] for x in scaled]).sum(0)

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> Verdict:
        distances = list(_distances(self.levels, features, valid_BSS))
        valid = on_grid(valid_BSS, distances[-1].shape[-2:])
        image = readout.top_mean(self._total(distances, valid_BSS, "location")[valid], TOP)
        return Verdict(sample_id, image, to_canvas(self._total(distances, valid_BSS, "global"), valid, canvas))


def _distances(
    levels: tuple[measures.Level, ...], features: Features, valid_BSS: Tensor, without_group: Tensor | None = None
) -> Iterator[Tensor]:
    for level, x in zip(levels, features.levels, strict=True):
        yield level.distances(x.float(), on_grid(valid_BSS, x.shape[-2:]), without_group)


def covering(examples: Examples, groups_n: Tensor, params: Params, spec: Spec) -> Covering:
    """`memory.codes` codes per level of standardised features, not whitened, all levels added up, nothing chosen; a
    training image is measured without its own part's codes."""
    features, settings = features_of(examples), params.memory.model_copy(update={"ridge": STANDARDISED})
    levels = tuple(
        normals.fit_level(x, examples.valid, groups_n, settings, params.seed, f"{folds.FULL}/{r}")
        for r, x in enumerate(features.levels)
    )
    found = [
        list(_distances(levels, features_of(batch), batch.valid, groups_n[indices]))
        for indices, batch in examples.batches(CHUNK)
    ]
    per_level = [torch.cat(values) for values in zip(*found, strict=True)]
    normals = tuple(normals.fit_statistics(x, on_grid(examples.valid, x.shape[-2:])) for x in per_level)
    return Covering(levels, normals)


STANDARDISED = 1e6  # a ridge this large leaves nothing of the whitening
Fit = Callable[[Examples, Tensor, Params, Spec], Detector]
BASELINES: dict[str, Fit] = {
    "patchcore_1": partial(patchcore, share=0.01),
    "patchcore_10": partial(patchcore, share=0.10),
    "patchcore_1_raw": partial(patchcore, share=0.01, standardised=False),
    "control": control,
    "covering": covering,
}
