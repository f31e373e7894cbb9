"""Yardsticks on the same frozen features, splits and geometry: what a user would pick instead. None is a product.

PatchCore is that of Roth et al., CVPR 2022, a plain reference. B views; h w the finest grid; S side of a view;
C channels; n training patches; K patches of a bank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pvqae.calibration import normals
from pvqae.core import seeding
from pvqae.core.config import Params
from pvqae.datasets import splits
from pvqae.features.examples import Batch, Examples
from pvqae.inference import measures, scoring
from pvqae.inference.measures import whiten
from pvqae.inference.scoring import SCALES
from pvqae.model.autoencoder import cover, nearest
from pvqae.model.backbones import Features, Spec, on_grid, repeat_border
from pvqae.model.layers import averaged
from pvqae.samples import geometry

_CHUNK = 16  # views at once
_SIGMA = 4.0  # of the map's Gaussian, model pixels (PatchCore's too)
_HALF = 2  # bytes of a stored number, for all detectors
_TOP = 0.01  # of the cells, for the image scores
_NEIGHBOURS = 9  # the paper's b
_WORK = 25_000_000_000  # n x K of one exact greedy choice that a processor does in a minute or two; above, by parts


@dataclass(frozen=True, eq=False)
class BaselineResult:
    """What a baseline says of one image; the fields that judging reads."""

    sample_id: str
    image_score: float
    anomaly_map: NDArray[np.float32]  # of the canvas
    parts: dict[str, float] = field(default_factory=dict)
    part_maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class Baseline(Protocol):
    """A fitted baseline. Sizes are in millions of bytes, beyond the frozen backbone."""

    @property
    def megabytes(self) -> float: ...

    def score(
        self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str
    ) -> BaselineResult: ...


def _to_canvas(maps_Bhw: Tensor, valid_Bhw: Tensor, canvas: geometry.Canvas) -> NDArray[np.float32]:
    """Enlarge bilinearly to model pixels, then blur."""
    side = canvas.views[0].side
    full = F.interpolate(repeat_border(maps_Bhw, valid_Bhw)[:, None], (side, side), mode="bilinear")[:, 0]
    return canvas.stitch([scoring.blur(view, _SIGMA).numpy() for view in full])


def _features_of(of: Batch | Examples) -> Features:
    """Return the frozen features: baselines stand on nothing else."""
    assert of.features is not None, "baselines stand on a frozen backbone"
    return of.features


@dataclass(frozen=True, eq=False)
class _Residual:
    """Some channels of the target: residual to the per-location training mean, whitened."""

    channels: slice
    mean: Tensor  # C x h x w
    whitening: Tensor  # C x C
    normal: scoring.Normal  # of the whitened length

    def lengths(self, features: Features) -> Tensor:
        return whiten(features.target[:, self.channels] - self.mean, self.whitening)


@dataclass(frozen=True, eq=False)
class _Control:
    """No model: the fine channels make the map, and the image score adds those of the coarsest tap.

    Each is in deviations of its place. With one covariance for all channels the map is worse (toothbrush: AUPRO .60,
    this way .84).
    """

    fine: _Residual
    coarse: _Residual

    @property
    def megabytes(self) -> float:
        stored = [(r.mean, r.whitening, r.normal.mean, r.normal.deviation) for r in (self.fine, self.coarse)]
        return sum(x.numel() for parts in stored for x in parts) * _HALF / 1e6

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> BaselineResult:
        lengths = [part.lengths(features) for part in (self.fine, self.coarse)]
        valid = on_grid(valid_BSS, lengths[0].shape[-2:])
        parts = zip((self.fine, self.coarse), lengths, strict=True)
        total = torch.stack([SCALES["location"](part.normal, x)[valid] for part, x in parts]).sum(0)
        return BaselineResult(sample_id, scoring.top_mean(total, _TOP), _to_canvas(lengths[0], valid, canvas))


def _control(examples: Examples, groups_n: Tensor, params: Params, spec: Spec) -> _Control:
    """Fit the mean per place, the full covariance of the residuals with a ridge of 1 %, and the spread per place."""
    edge = sum(spec.groups[:-1])
    return _Control(*(_residual(examples, params, channels) for channels in (slice(0, edge), slice(edge, None))))


def _residual(examples: Examples, params: Params, channels: slice) -> _Residual:
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
    return _Residual(channels, mean, whitening, normals.fit_statistics(lengths, valids))


def _targets(examples: Examples, channels: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield B x C x h x w and B x 1 x h x w."""
    for _, batch in examples.batches(_CHUNK):
        target = _features_of(batch).target[:, channels]
        yield target, on_grid(batch.valid, target.shape[-2:])[:, None]


@dataclass(frozen=True, eq=False)
class _Covering:
    """One covering codebook per level; distances in deviations of normals, levels added."""

    memories: tuple[measures.Memory, ...]
    normals: tuple[scoring.Normal, ...]

    @property
    def megabytes(self) -> float:
        codes = sum(memory.codes.numel() + 2 * memory.mean.numel() for memory in self.memories)
        return (codes + sum(2 * normal.mean.numel() for normal in self.normals)) * _HALF / 1e6

    def _total(self, distances: list[Tensor], valid_BSS: Tensor, scale: str) -> Tensor:
        grid = distances[-1].shape[-2:]
        scaled = [
            repeat_border(SCALES[scale](normal, x), on_grid(valid_BSS, x.shape[-2:]))
            for normal, x in zip(self.normals, distances, strict=True)
        ]
        return torch.stack([F.interpolate(x[:, None], grid, mode="bilinear")[:, 0] for x in scaled]).sum(0)

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> BaselineResult:
        distances = list(_distances(self.memories, features, valid_BSS))
        valid = on_grid(valid_BSS, distances[-1].shape[-2:])
        image = scoring.top_mean(self._total(distances, valid_BSS, "location")[valid], _TOP)
        return BaselineResult(sample_id, image, _to_canvas(self._total(distances, valid_BSS, "global"), valid, canvas))


def _distances(
    memories: tuple[measures.Memory, ...], features: Features, valid_BSS: Tensor, without_group: Tensor | None = None
) -> Iterator[Tensor]:
    for memory, x in zip(memories, features.levels, strict=True):
        yield memory.distances(averaged(x.float()), on_grid(valid_BSS, x.shape[-2:]), without_group)


def _covering(examples: Examples, groups_n: Tensor, params: Params, spec: Spec) -> _Covering:
    """Fit `memory.codes` codes per level of standardised features; all levels are added up.

    A training image is measured without its own part's codes.
    """
    memories = tuple(_memory(x, examples, groups_n, params, r) for r, x in enumerate(_features_of(examples).levels))
    found = [
        list(_distances(memories, _features_of(batch), batch.valid, groups_n[indices]))
        for indices, batch in examples.batches(_CHUNK)
    ]
    per_level = [torch.cat(values) for values in zip(*found, strict=True)]
    valid = (on_grid(examples.valid, x.shape[-2:]) for x in per_level)
    statistics = tuple(normals.fit_statistics(x, inside) for x, inside in zip(per_level, valid, strict=True))
    return _Covering(memories, statistics)


def _memory(x_nChw: Tensor, examples: Examples, groups_n: Tensor, params: Params, level: int) -> measures.Memory:
    name, settings = f"{splits.FULL}/{level}", params.memory
    sample = normals.CellSample.draw(examples.cells(x_nChw.shape[-2:]), settings.patches, params.seed, name)
    starts = range(0, len(x_nChw), _CHUNK)
    vectors = torch.cat([sample.vectors(averaged(x_nChw[i : i + _CHUNK].float()), i) for i in starts])
    return normals.fit_memory(vectors, groups_n[sample.views], settings.codes)


def _patches(features: Features) -> Tensor:
    """Put the two finest levels, each averaged over 3x3, on the finest grid: B x C x h x w."""
    finest = features.levels[-1].shape[-2:]
    return torch.cat([F.interpolate(averaged(x.float()), finest, mode="bilinear") for x in features.levels[-2:]], dim=1)


def _coreset(x_nC: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` rows by greedy k-centre from a random one; returns their indices.

    Where that is too much for a processor, each of several random parts gives its share: the bank is as large, its
    cover a little worse than the exact one. Without the usual random projection: to 64 of 152 dimensions it costs
    accuracy on toothbrush, and anomalib's has more dimensions than there are.
    """
    draws = seeding.generator(seed, "coreset")
    parts = max(1, -(-count * len(x_nC) // _WORK))
    order = torch.randperm(len(x_nC), generator=draws)
    shares = [count // parts + (index < count % parts) for index in range(parts)]
    pairs = zip(order.chunk(parts), shares, strict=True)
    return torch.cat([part[cover(x_nC[part], share)] for part, share in pairs]).sort().values


def patches_of(examples: Examples) -> Tensor:
    """Return all valid patches, n x C in half precision."""
    parts = []
    for _, batch in examples.batches(_CHUNK):
        x = _patches(_features_of(batch))
        parts.append(x.movedim(1, -1)[on_grid(batch.valid, x.shape[-2:])].half())
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class PatchCore:
    """A bank of normal patches; the distance to the nearest, the highest one re-weighted as in the paper."""

    mean: Tensor  # C
    deviation: Tensor  # C
    bank: Tensor  # K x C

    @property
    def megabytes(self) -> float:
        return (self.bank.numel() + 2 * self.mean.numel()) * _HALF / 1e6

    def score(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> BaselineResult:
        x_BhwC = (_patches(features).movedim(1, -1) - self.mean) / self.deviation
        valid = on_grid(valid_BSS, x_BhwC.shape[1:3])
        found = [nearest(x, self.bank) for x in torch.split(x_BhwC.flatten(0, 2), 256)]
        distance, index = (torch.cat(values).view(valid.shape) for values in zip(*found, strict=True))
        distance = distance.sqrt()
        worst = distance.masked_fill(~valid, -1).flatten().argmax()
        image = float(distance.flatten()[worst]) * self._weight(x_BhwC.flatten(0, 2)[worst], index.flatten()[worst])
        return BaselineResult(sample_id, image, _to_canvas(distance, valid, canvas))

    def _weight(self, patch_C: Tensor, code: Tensor) -> float:
        """Return 1 - softmax of the patch's distance to its code among the distances to the code's nearest neighbours.

        A patch near a code that is itself rare counts more.
        """
        around = (self.bank - self.bank[code]).square().sum(1)
        neighbours = around.topk(min(_NEIGHBOURS, len(around)), largest=False).indices
        if len(neighbours) < 2:
            return 1.0
        distances = (self.bank[neighbours] - patch_C).square().sum(1).sqrt()
        own = (self.bank[code] - patch_C).square().sum().sqrt()
        return float(1 - (own - distances.logsumexp(0)).exp())


def _patchcore(
    examples: Examples, groups_n: Tensor, params: Params, spec: Spec, *, share: float, scaled: bool = False
) -> PatchCore:
    """Fill a bank with a `share` of all valid patches. `scaled` gives every channel unit spread first: the taps of this
    backbone are of unequal size, and Euclidean distance hears the loudest most.
    """
    every = patches_of(examples).float()
    mean, deviation = torch.zeros(every.shape[1]), torch.ones(every.shape[1])
    if scaled:
        mean, deviation = every.mean(0), every.std(0).clamp_min(1e-6)
    every = (every - mean) / deviation
    chosen = _coreset(every, max(1, round(share * len(every))), params.seed)
    return PatchCore(mean, deviation, every[chosen].half().float())


_Fit = Callable[[Examples, Tensor, Params, Spec], Baseline]
BASELINES: dict[str, _Fit] = {
    "patchcore_1": partial(_patchcore, share=0.01),
    "patchcore_10": partial(_patchcore, share=0.10),
    "patchcore_1_scaled": partial(_patchcore, share=0.01, scaled=True),
    "control": _control,
    "covering": _covering,
}
