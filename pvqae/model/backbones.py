"""Backbones: images → R maps, coarse to fine, and what the decoder must reconstruct.

B batch; R levels; C_r channels of level r; h_r w_r its grid; T channels of the target; H W the finest grid.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core.config import Model
from pvqae.core.errors import ConfigError
from pvqae.model import efficientnet, layers
from pvqae.model.layers import averaged

RANGES = "ranges.json"  # of a network's folder: what a frozen one of 8 bit knows of its normals


class Features(NamedTuple):
    """What one batch of images gives."""

    levels: list[Tensor]  # R tensors B x C_r x h_r x w_r, coarse to fine
    target: Tensor  # B x T x H x W features, or B x 3 x S x S pixels


@dataclass(frozen=True)
class Spec:
    """What the rest of the model needs to know of a backbone."""

    channels: tuple[int, ...]  # C_r, coarse to fine
    groups: tuple[int, ...]  # channels of the target that belong together, e.g. to one tap; their sum is T
    decoder: str  # key of `pvqae.model.layers.DECODERS`
    frozen: bool


class Backbone(nn.Module):
    """`forward(x_B3SS) -> Features`; pixels in [0, 1]."""

    spec: Spec
    weights_sha256: str | None = None  # of the file of frozen weights; None where they are trained, and in the bundle

    def installed_weights(self) -> bytes | None:
        """Return the content of the file of frozen weights; None where the weights are trained."""
        return None

    @property
    def engine(self) -> str:
        """What computes the features, with its version."""
        return f"torch {torch.__version__}"

    def facts(self) -> dict[str, Any] | None:
        """Return what a bundle keeps of a network that the name alone does not say, None where there is nothing."""
        return None

    def ranges(self, views_13SS: Iterable[Tensor]) -> list[float]:
        """Return what `quantise` needs, of some RGB views of normals in [0, 1]. Raises `ConfigError` as that does."""
        raise ConfigError(
            "model.precision: int8 is for the networks efficientnet_lite0, 1 and 2, found another model.backbone; "
            "change it, or set float32"
        )

    def quantise(self, ranges: list[float]) -> None:
        """Compute in 8 bit from now on. Raises `ConfigError` where the network can't."""
        self.ranges([])

    def joint(self, features: Features) -> Tensor:
        """Return what several resolutions say of one place together, each averaged over 3x3 cells, B x C x H x W.

        Here those are all but the coarsest.
        """
        return _together([averaged(x) for x in features.levels[1:] or features.levels])

    def local(self, features: Features) -> Tensor:
        """Return the same as sharp as it is kept, B x C x H x W: averages carry a cell's neighbours into it."""
        return _together(features.levels[1:] or features.levels)


class _EfficientNetFeatures(Backbone):
    """Taps of a frozen ImageNet network (METHOD section 1): the resolutions are its strides 32, 16, 8 (and 4)."""

    TAPS = (6, 4, 2, 1)  # stages whose last block is read, coarse to fine
    TARGETS = (1, 2, 4, 5)
    JOINT = 3  # of the targets: one resolution finer than the levels; the coarsest blurs

    def __init__(self, model: Model, weights: bytes | None = None):
        super().__init__()
        self.name = model.backbone
        ends = efficientnet.stages(self.name)
        taps, targets = [ends[i] for i in self.TAPS[: model.levels]], [ends[i] for i in self.TARGETS]
        self.taps, self.targets = (tuple(block for block, _ in some) for some in (taps, targets))
        channels, groups = (tuple(c for _, c in some) for some in (taps, targets))
        self.spec, self.joined = Spec(channels, groups, "features", frozen=True), sum(groups[: self.JOINT])
        data = weights or self.installed_weights()
        self.weights_sha256 = hashlib.sha256(data).hexdigest()
        self.network = efficientnet.load(data, self.name)
        self.run = efficientnet.Compiled(self.network, self.taps, self.targets)
        self._last, self._precision, self._ranges = max(self.taps + self.targets), model.precision, list[float]()

    def installed_weights(self) -> bytes:
        return efficientnet.weights(self.name)

    @property
    def engine(self) -> str:
        return efficientnet.engine(self.network.stem.weight.device.type)

    def facts(self) -> dict[str, Any] | None:
        return {"ranges": self._ranges} if self._ranges else None

    def ranges(self, views_13SS: Iterable[Tensor]) -> list[float]:
        return efficientnet.ranges(self.network, views_13SS, self._last)

    def quantise(self, ranges: list[float]) -> None:
        if len(ranges) != self._last + 1:
            raise ConfigError(f"model.precision: int8 expects {self._last + 1} ranges, found {len(ranges)}")
        efficientnet.quantise(self.network, ranges)
        self._ranges = ranges

    @torch.no_grad()
    def forward(self, x_B3SS: Tensor) -> Features:
        if self._precision == "int8" and not self._ranges:
            raise ConfigError("model.precision: int8 needs ranges of normals, found none; train this class again")
        found = self.run(x_B3SS)
        levels, targets = found[: len(self.taps)], found[len(self.taps) :]
        grid = levels[-1].shape[-2:]
        return Features(levels, torch.cat([_to_grid(x, grid) for x in targets], dim=1))

    def joint(self, features: Features) -> Tensor:
        return features.target[:, : self.joined]

    def local(self, features: Features) -> Tensor:
        finest = features.target[:, : self.spec.groups[0]]  # of a grid so fine that its average is no wider than a cell
        return torch.cat([super().local(features), finest], dim=1)


class _ForeignFeatures(Backbone):
    """Layers of a network of another library, frozen: of several resolutions as they are, of one pooled to each level's
    grid (`pvqae.model.foreign`).
    """

    def __init__(self, model: Model, weights: bytes | None, size: int, known: Mapping[str, Any] | None):
        super().__init__()
        from pvqae.model import foreign  # two libraries that only such a network needs

        self.network, self._facts = foreign.make(model, weights, size, known)
        self.weights_sha256, self.content = self._facts["sha256"], partial(foreign.content, model)
        use = self.network.use
        self.count, self.plain, self.joined = model.levels, use.plain, [use.taps.index(tap) for tap in use.joint]
        channels = tuple(tap.channels for tap in use.taps[: model.levels])
        self.spec = Spec(channels, tuple(tap.channels for tap in use.joint), "features", frozen=True)

    def installed_weights(self) -> bytes:
        return self.content()

    def facts(self) -> dict[str, Any]:
        return self._facts

    @torch.no_grad()
    def forward(self, x_B3SS: Tensor) -> Features:
        maps, cells = self.network(x_B3SS), x_B3SS.shape[-1] // 32
        grids = [(cells * 2**r, cells * 2**r) for r in range(self.count)]
        levels = [_to_grid(x, grid) for x, grid in zip(maps, grids, strict=False)]  # one map more may be for the target
        joined = (maps[i] for i in self.joined)
        if self.plain:  # three of its cells are a larger part of the image than three of the finest grid
            target = [averaged(_to_grid(x, grids[-1])) for x in joined]
        else:
            target = [_to_grid(averaged(x), grids[-1]) for x in joined]
        return Features(levels, torch.cat(target, dim=1))

    def joint(self, features: Features) -> Tensor:
        return features.target


def _together(maps: list[Tensor]) -> Tensor:
    """Return maps side by side on the grid of the last."""
    return torch.cat([_to_grid(x, maps[-1].shape[-2:]) for x in maps], dim=1)


def _to_grid(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    size = (grid[0], grid[1])
    if x.shape[-1] % size[1] == 0:
        return F.adaptive_avg_pool2d(x, size)
    if x.shape[-1] > size[1]:
        rows, columns = (_areas(n, m).to(x) for n, m in zip(x.shape[-2:], size, strict=True))
        return rows @ x @ columns.T
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _areas(n: int, m: int) -> Tensor:
    """Return the share of each of n cells in each of m wider ones over the same length, m x n; rows add up to 1."""
    edges = torch.arange(m + 1, dtype=torch.float64)[:, None] * n / m
    inside = (edges - torch.arange(n)).clamp(0, 1)  # of cell i, up to each edge
    return (inside[1:] - inside[:-1]) * m / n


class _VqganPixels(Backbone):
    """The paper's backbone: a convolutional encoder trained from scratch; the target is the image itself."""

    def __init__(self, model: Model, weights: bytes | None = None):
        super().__init__()
        self.encoder = layers.Encoder(model.width, model.levels)
        self.spec = Spec(tuple(self.encoder.channels), (3,), "pixels", frozen=False)

    def forward(self, x_B3SS: Tensor) -> Features:
        return Features(self.encoder(x_B3SS), x_B3SS)


BACKBONES: dict[str, Callable[[Model, bytes | None], Backbone]] = {
    "efficientnet_lite0": _EfficientNetFeatures,
    "efficientnet_lite1": _EfficientNetFeatures,
    "efficientnet_lite2": _EfficientNetFeatures,
    "vqgan": _VqganPixels,
}


def make(model: Model, weights: bytes | None = None, size: int = 0, known: Mapping[str, Any] | None = None) -> Backbone:
    """Return the backbone that `model.backbone` names, with frozen `weights` in place of the installed ones.

    `size`: of a view, which a network of another library is prepared for; `known`: the facts of the bundle that it is
    for, without which one of 8 bit needs ranges first. Raises `ConfigError` for an unknown name, or a network that its
    weights don't fit or that can't have 8 bit.
    """
    if model.backbone in BACKBONES:
        backbone = BACKBONES[model.backbone](model, weights)
    elif ":" in model.backbone:
        backbone = _ForeignFeatures(model, weights, size, known)
    else:
        raise ConfigError(
            f"model.backbone: expected one of {', '.join(BACKBONES)}, timm:NAME@SHA256 or hf:FOLDER@SHA256, found "
            f"{model.backbone}"
        )
    if model.precision == "int8":
        backbone.ranges([])  # can it?
        if known is not None:
            backbone.quantise(known["ranges"])
    return backbone


def on_grid(valid_BSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return cells of which at least half are image, or of a very thin image those it covers best: B x S x S → B x
    grid.
    """
    share = F.adaptive_avg_pool2d(valid_BSS[:, None].float(), (grid[0], grid[1]))[:, 0]
    return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5)


def cells_of(valid_nSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Apply `on_grid` to many views, 256 at a time: all at once are floats of a quarter megabyte each."""
    return torch.cat([on_grid(some, grid) for some in torch.split(valid_nSS, 256)])


def repeat_border(map_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Give padding the value of the nearest image cell, as its pixels have, so that no smoothing carries anything else
    into the image. The valid cells of a view are a rectangle.
    """
    for dim in (1, 2):
        inside = valid_BHW.any(3 - dim).int()
        length = inside.shape[1]
        first, last = inside.argmax(1, keepdim=True), length - 1 - inside.flip(1).argmax(1, keepdim=True)
        index = torch.arange(length, device=map_BHW.device).expand_as(inside).clamp(first, last)
        map_BHW = map_BHW.gather(dim, index.unsqueeze(3 - dim).expand_as(map_BHW))
    return map_BHW
