"""Raw measures of abnormality, one map each, before any normalisation (METHOD section 5).

A memory of normality holds codes that cover the features of training normals at one resolution, or of several
resolutions at once; its measure is the distance to the nearest code, in units of how far apart the codes are there:
where normals differ much, a cell may be far from all of them. Features are averaged over 3x3 cells and every channel is
standardised first. One more memory has no codes but what is normal at each place. What real defects said of memories:
docs/experiments/readouts.md.

B views; N = h*w coarse cells; R levels; H W the finest grid; S side of a view; T channels of the target; K codes;
C channels of a memory, h w its grid.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae.core.errors import ConfigError
from pvqae.model.autoencoder import Autoencoder, as_onehot, nearest
from pvqae.model.backbones import Backbone, Features, on_grid, repeat_border
from pvqae.model.layers import averaged
from pvqae.prior.prior import Expected, Prior, expect

_CELLS = 400  # vectors compared at once: their distances to all codes stay in the processor's cache
_PROBABILITY_FLOOR = 1e-3
STRIDES = ("stride32", "stride16", "stride8", "stride4")  # memories of one resolution each
JOINT = "joint"  # the memory whose codes span resolutions
PLACE = "place"  # no codes but a Gaussian of each place


@dataclass(frozen=True, eq=False)
class Projection:
    """A random orthogonal map of C channels to W < C: rows of the cosine transform, with random signs of the channels.

    Distances between vectors stay what they are but for a few per cent (Johnson and Lindenstrauss 1984; Ailon and
    Chazelle 2009), at W / C of the work. Two short lists in a bundle say all of it.
    """

    signs: Tensor  # C, 1 or -1
    rows: Tensor  # W of 0 ... C - 1

    @staticmethod
    def draw(channels: int, width: int, generator: torch.Generator) -> "Projection":
        signs = torch.randint(0, 2, (channels,), generator=generator, dtype=torch.int8) * 2 - 1
        return Projection(signs, torch.randperm(channels, generator=generator)[:width].sort().values.to(torch.int32))

    @cached_property
    def matrix(self) -> Tensor:
        """C x W; its columns are orthogonal, and of the length at which distances stay what they are."""
        channels, width = len(self.signs), len(self.rows)
        places = torch.arange(channels, dtype=torch.float64)[:, None] + 0.5
        lengths = torch.where(self.rows == 0, (1 / width) ** 0.5, (2 / width) ** 0.5)  # the first row does not wave
        waves = (places * self.rows.double() * torch.pi / channels).cos() * lengths.double()
        signed: Tensor = waves * self.signs.double()[:, None]
        return signed.float()


@dataclass(frozen=True, eq=False)
class Memory:
    """Codes that cover normal features."""

    mean: Tensor  # C, of training normals
    scale: Tensor  # C, one over the deviations of training normals; C x C where an older bundle whitens
    codes: Tensor  # K x C, scaled, or K x W, projected, too; multiples of `step` from -127 to 127
    step: Tensor  # C or W: codes are kept as bytes, which halves a bundle
    owners: Tensor  # K, the group that each code was taken from; kept while fitting only
    projection: Projection | None = None  # of what has more channels than `memory.width`
    spacing: Tensor | None = None  # K, distance of each code from its neighbours, > 0; None: distances are as they are

    @cached_property
    def squares(self) -> Tensor:
        """K, of the codes' lengths."""
        return self.codes.square().sum(1)

    def as_bytes(self) -> Tensor:
        """Return the codes as K x C signed bytes, in steps."""
        return (self.codes / self.step).round().to(torch.int8)

    def vectors(self, x_BChw: Tensor) -> Tensor:
        """Return the scaled vectors of the cells, B x h*w x C, or x W where they are projected."""
        centred = x_BChw.flatten(2).transpose(1, 2) - self.mean
        scaled = centred * self.scale if self.scale.ndim == 1 else centred @ self.scale
        return scaled if self.projection is None else scaled @ self.projection.matrix

    def distances(self, x_BChw: Tensor, valid_Bhw: Tensor, without_group: Tensor | None = None) -> Tensor:
        """Return how far each cell is away from the nearest code (`away`), smoothed over 3x3 cells, B x h x w.

        Padding adds nothing to it. `without_group` (B): codes that come from that group don't count. A training image
        is then judged by what the other parts taught, as a new image will be.
        """
        maps = []
        for index, vectors in enumerate(self.vectors(x_BChw)):
            own = self if without_group is None else self.apart_from(int(without_group[index]))
            maps.append(torch.cat([own.away(part) for part in vectors.split(_CELLS)]))
        return self.smoothed(torch.stack(maps).view(valid_Bhw.shape), valid_Bhw)

    def apart_from(self, group: int) -> "Memory":
        """Return the memory without the codes of a group, or itself where that group owns all. Only while fitting."""
        others = self.owners != group
        if not others.any():
            return self
        spacing = None if self.spacing is None else self.spacing[others]
        return replace(self, codes=self.codes[others], owners=self.owners[others], spacing=spacing)

    def settled(self) -> "Memory":
        """Return the memory as it is: owners are few bytes."""
        return self

    def away(self, vectors_nC: Tensor) -> Tensor:
        """Return the distance of each of n vectors to its nearest code, in units of that code's spacing.

        It is computed from the two again: `nearest` works with a difference of large squares, of which nothing but
        rounding is left where a vector is a code, as on a plain background.
        """
        indices = nearest(vectors_nC, self.codes, self.squares)[1]
        distances = (vectors_nC - self.codes[indices]).square().sum(1).sqrt()
        return distances if self.spacing is None else distances / self.spacing[indices]

    @staticmethod
    def smoothed(distances_Bhw: Tensor, valid_Bhw: Tensor) -> Tensor:
        """Return the mean over 3x3 cells, padding taking the value of the nearest image cell."""
        grid = repeat_border(distances_Bhw, valid_Bhw)
        return F.avg_pool2d(grid[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


@dataclass(frozen=True, eq=False)
class PlaceMemory:
    """What is normal at each place of a view: a mean of its own, and one covariance for all places.

    As PaDiM (Defard et al. 2020), whose covariance for every place takes forty times the room and is hardly better
    (docs/experiments/trials.md). It sees what lies at the wrong place, which a memory of codes can't.
    """

    mean: Tensor  # C, or W where projected: of all places
    places: Tensor  # h x w x C, or x W: how far each place's mean is from it; multiples of `step` from -127 to 127
    step: Tensor  # C or W
    root: Tensor  # C x C or W x W, of the inverse covariance
    projection: Projection | None = None
    without: tuple["PlaceMemory", ...] = ()  # as the groups outside of each fold would have it; only while fitting
    folds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # of each group; only while fitting

    @cached_property
    def means(self) -> Tensor:
        """The mean of each place, h x w x C, or x W."""
        return self.mean + self.places

    def as_bytes(self) -> Tensor:
        """Return `places` as signed bytes, in steps."""
        return (self.places / self.step).round().to(torch.int8)

    def distances(self, x_BChw: Tensor, valid_Bhw: Tensor, without_group: Tensor | None = None) -> Tensor:
        """Return the Mahalanobis distance of each cell to the mean of its place, per root of a channel, B x h x w.

        `without_group` (B): that group's fold has taught nothing of what a view is compared with.
        """
        x = x_BChw.movedim(1, -1)
        x = x if self.projection is None else x @ self.projection.matrix
        if without_group is None:
            return self._away(x)
        return torch.stack([self.apart_from(g)._away(one) for g, one in zip(without_group.tolist(), x, strict=True)])

    def apart_from(self, group: int) -> "PlaceMemory":
        """Return what the folds without a group say, or itself where there is one fold. Only while fitting."""
        return self.without[int(self.folds[group])] if self.without else self

    def settled(self) -> "PlaceMemory":
        """Return the memory without what only fitting asks for, four times its own size."""
        return replace(self, without=(), folds=torch.empty(0, dtype=torch.long))

    def _away(self, x_hwC: Tensor) -> Tensor:
        return ((x_hwC - self.means) @ self.root.T).square().mean(-1).sqrt()


AnyMemory = Memory | PlaceMemory


def memory_names(backbone: Backbone, *weights: Mapping[str, float]) -> tuple[str, ...]:
    """Return the memories that have a weight in any of `weights` and something to read; coarse to fine, `JOINT` and
    `PLACE` last.

    Raises `ConfigError` where nothing is left.
    """
    there = (*STRIDES[: len(backbone.spec.channels)], JOINT, PLACE)
    names = tuple(name for name in there if any(name in some for some in weights))
    for some in weights:
        if not set(some) & set(names):
            raise ConfigError(f"score.image, score.map: expected a weight for some of {', '.join(there)}, found {some}")
    return names


def memory_input(backbone: Backbone, features: Features, name: str) -> Tensor:
    """Return what the memory `name` reads, B x C x h x w, averaged over 3x3 cells but for that of places."""
    if name in (JOINT, PLACE):
        return (backbone.joint(features) if name == JOINT else backbone.local(features)).float()
    return averaged(features.levels[STRIDES.index(name)].float())


@dataclass(frozen=True, eq=False)
class Allocator:
    """What is trained by steps: which levels an image spends, and which levels normal images spend there."""

    autoencoder: Autoencoder
    prior: Prior
    measure: str  # of what the prior did not expect, a key of `PRIOR_MEASURES`


@dataclass(frozen=True, eq=False)
class Networks:
    """All that learns: from images to allocations, reconstructions and distances."""

    backbone: Backbone
    allocator: Allocator | None  # None where nothing was trained (train.steps: 0)
    memories: Mapping[str, AnyMemory]  # by what they read (`memory_input`); empty where none is scored
    whitening: Tensor | None  # T x T, of decoder residuals of training normals; None where they are not scored

    @property
    def trained(self) -> Allocator:
        """Return the allocator. Raises `ConfigError` where nothing was trained."""
        if self.allocator is None:
            raise ConfigError("expected a trained network, found a detector of train.steps: 0; train it with steps")
        return self.allocator

    def allocating(self, **changes: Any) -> "Networks":
        """Return these networks with fields of their `Allocator` replaced."""
        return replace(self, allocator=replace(self.trained, **changes))


@dataclass(frozen=True, eq=False)
class Budget:
    """What a batch of views spends, what normal views were expected to, and how far the two are apart."""

    valid: Tensor  # B x h x w, cells that are image
    unlikely: Tensor  # B x h x w, >= 0: the prior's measure
    levels: Tensor  # B x h x w, spent; 0 is the coarsest, -1 padding
    normal: Tensor  # B x h x w, the expected normal budget, a guess on padding, too

    @property
    def expected(self) -> Tensor:
        """B x h x w, the expected normal budget; -1 on padding."""
        return self.normal.masked_fill(~self.valid, -1)


@dataclass(frozen=True, eq=False)
class Raw:
    """The measures of a batch of views. The budget is asked for when something needs it: a score of the memory alone
    does not, and router and prior are a tenth of the time of a score. Without a trained network there is none to ask.
    """

    maps: dict[str, Tensor]  # by memory (B x h x w), decoder (B x H x W); all >= 0
    valid: dict[str, Tensor]  # the same keys: cells that are image
    ask: Callable[[], Budget] | None

    @cached_property
    def budget(self) -> Budget:
        assert self.ask is not None, "nobody asks for a budget where no network was trained"
        return self.ask()

    @property
    def cells(self) -> Tensor:
        """Which cells of the finest grid are image, B x H x W."""
        return max(self.valid.values(), key=lambda v: v.shape[-1])

    def settled(self) -> "Raw":
        """Return these measures with their budget computed, so that the features that it comes from can be freed."""
        if self.ask is None:
            return self
        budget = self.budget
        return Raw(self.maps, self.valid, lambda: budget)

    def tensors(self) -> dict[tuple[str, str], Tensor]:
        """Return all that is here, each with B as its first axis, the budget settled."""
        budget = () if self.ask is None else fields(Budget)
        return {
            **{("maps", name): x for name, x in self.maps.items()},
            **{("valid", name): x for name, x in self.valid.items()},
            **{("budget", f.name): getattr(self.budget, f.name) for f in budget},
        }

    @staticmethod
    def joined(runs: "Iterator[Raw]", count: int) -> "Raw":
        """Return the `count` views of several runs as one batch, each run read and dropped.

        They are copied into one tensor for all: small ones that stay between the large ones of every run would keep
        the memory of those from being used again.
        """
        whole, start = dict[tuple[str, str], Tensor](), 0
        for run in runs:
            for key, x in run.tensors().items():
                whole.setdefault(key, x.new_empty(count, *x.shape[1:]))[start : start + len(x)] = x
            start += len(run.cells)
            del run
        maps, valid, budget = (
            {name: x for (own, name), x in whole.items() if own == kind} for kind in ("maps", "valid", "budget")
        )
        return Raw(maps, valid, (lambda: Budget(**budget)) if budget else None)

    def view(self, index: int) -> "Raw":
        """Return one view as a batch of its own."""
        only = slice(index, index + 1)
        return Raw(
            {name: x[only] for name, x in self.maps.items()},
            {name: x[only] for name, x in self.valid.items()},
            self.ask and (lambda: Budget(*(getattr(self.budget, f.name)[only] for f in fields(Budget)))),
        )


def _cross_entropy(expected: Expected, logits_BNR: Tensor) -> Tensor:
    """Return the cross-entropy of the soft allocation under the expected one, probabilities floored (paper); B x N."""
    log_expected = expected.logits.softmax(-1).clamp_min(_PROBABILITY_FLOOR).log()
    nats: Tensor = -logits_BNR.softmax(-1) * log_expected
    return nats.sum(-1)


def _gaussian(expected: Expected, logits_BNR: Tensor) -> Tensor:
    """Return the mean squared deviation of the router's logits from the expected ones, in expected deviations; B x N.

    The cross-entropy sees a defect only where it changes the level; this sees one that makes the router unsure.
    """
    squares: Tensor = (logits_BNR - expected.mean).square() * (-expected.log_variance).exp()
    return squares.mean(-1)


PRIOR_MEASURES: dict[str, Callable[[Expected, Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "gaussian": _gaussian,
}


def residual(allocator: Allocator, features: Features, expected_Bhw: Tensor, valid_BSS: Tensor) -> Tensor:
    """Return target - reconstruction with the expected normal budget, not the actual one (paper); B x T x H x W."""
    autoencoder = allocator.autoencoder
    onehot = as_onehot(expected_Bhw, len(features.levels))
    output = autoencoder.reconstruct(features, on_grid(valid_BSS, features.levels[-1].shape[-2:]), onehot)
    return (autoencoder.standardised_target(features) - output.reconstruction).float()


def whiten(residual_BTHW: Tensor, whitening_TT: Tensor) -> Tensor:
    """Return the length of the whitened residual, B x H x W."""
    white: Tensor = torch.einsum("bthw,ts->bshw", residual_BTHW, whitening_TT)
    return white.square().mean(1).sqrt()


@torch.no_grad()
def measure(networks: Networks, features: Features, valid_BSS: Tensor, without_group: Tensor | None = None) -> Raw:
    """Compute all measures of a batch. `without_group` (B): its codes don't count, see `Memory.distances`."""
    valid_at, maps, allocator = cache(partial(on_grid, valid_BSS)), dict[str, Tensor](), networks.allocator
    ask = None if allocator is None else cache(partial(_budget, allocator, features, valid_BSS))
    for name, memory in networks.memories.items():
        x = memory_input(networks.backbone, features, name)
        maps[name] = memory.distances(x, valid_at(x.shape[-2:]), without_group)
    if networks.whitening is not None and ask is not None:
        maps["decoder"] = whiten(residual(networks.trained, features, ask().normal, valid_BSS), networks.whitening)
    return Raw(maps, {name: valid_at(x.shape[-2:]) for name, x in maps.items()}, ask)


@torch.no_grad()
def _budget(allocator: Allocator, features: Features, valid_BSS: Tensor) -> Budget:
    logits = allocator.autoencoder.router(allocator.autoencoder.codes(features))
    valid = on_grid(valid_BSS, logits.shape[-2:])
    expected = expect(allocator.prior, logits, valid)
    unlikely = PRIOR_MEASURES[allocator.measure](expected, logits.flatten(2).transpose(1, 2))
    normal = expected.logits.argmax(-1).view(valid.shape)
    return Budget(valid, unlikely.view(valid.shape), _chosen(logits, valid), normal)


@torch.no_grad()
def spent(autoencoder: Autoencoder, features: Features, valid_BSS: Tensor) -> Tensor:
    """Return the levels alone, `Budget.levels`, at a small part of its cost."""
    logits = autoencoder.router(autoencoder.codes(features))
    return _chosen(logits, on_grid(valid_BSS, logits.shape[-2:]))


def _chosen(logits_BRhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    return logits_BRhw.argmax(1).masked_fill(~valid_Bhw, -1)
