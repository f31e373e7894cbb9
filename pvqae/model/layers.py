"""GroupNorm, and GroupNorm followed by SiLU in one: where PyTorch's own is slow, in bf16 on a processor, by pieces.

There its backward pass through a channels-last map takes five times as long as reading the map does, a third of a
training step of the pixel backbone. Here a map goes through in pieces that stay in the processor's cache, in single
precision inside, which is nearer to the exact gradient, too (`tests/pvqae/model/test_norm.py`).
B images; C channels; n cells of an image; G groups; m cells of a piece.

The convolutional encoder of the pixel backbone (VQ-GAN style), whose last R stages form the hierarchy Z_1..Z_R.

Decoders G: merged, quantised codes on the finest grid → what the backbone's target is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PIECE = 2**18  # values: 1 MB in single precision


def averaged(x_BChw: Tensor) -> Tensor:
    """Return the mean over 3x3 cells.

    Cells on padding count: their pixels repeat the image's border, and leaving them out makes border cells noisier
    (measured: docs/experiments/trials.md).
    """
    return F.avg_pool2d(x_BChw, 3, 1, 1, count_include_pad=False)


def norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm with groups of at least four channels, so that it works for any width."""
    return nn.GroupNorm(_groups(channels), channels)


def _groups(channels: int) -> int:
    return max(1, min(32, channels // 4))


class _NormSilu(nn.GroupNorm):
    """`norm`, then SiLU: B x C x H x W → the same."""

    def __init__(self, channels: int):
        super().__init__(_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled():
            out: Tensor = _Pieces.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
            return out
        return F.silu(super().forward(x))


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        mean, inverse = _statistics(x, groups, eps)  # B x C, each channel's group's
        scale = inverse * weight
        shift = bias - mean * scale
        out = torch.empty_like(x)
        for i, (part, to), (single, y) in _pieces(x, out):
            torch.addcmul(shift[i], single.copy_(part), scale[i], out=y)
            to.copy_(F.silu(y, inplace=True))
        ctx.save_for_backward(x, weight, mean, inverse, scale, shift)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, scale, shift = ctx.saved_tensors
        dy, total, along = _through_silu(x, dout.contiguous(memory_format=torch.channels_last), scale, shift)
        # dx = scale dy + by x + constant, of which the last two keep each group's mean and deviation as they are
        count = x[0, 0].numel() * x.shape[1] // ctx.groups
        by = _over_groups(weight * (total * mean - along), ctx.groups) * inverse**3 / count
        constant = -by * mean - _over_groups(weight * total, ctx.groups) * inverse / count
        for i, (part, to), (single, y) in _pieces(x, dy):
            torch.addcmul(constant[i], single.copy_(part), by[i], out=y)
            to.copy_(y.addcmul_(single.copy_(to), scale[i]))
        return dy, ((along - total * mean) * inverse).sum(0), total.sum(0), None, None


def _through_silu(x: Tensor, dout: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before SiLU, like `x`; its sum over cells, B x C; the sum of its product with `x`, B x C."""
    dy = torch.empty_like(x)
    total, along = torch.zeros(2, *scale.shape, dtype=torch.float64)
    for i, (part, outer, to), (single, y, d) in _pieces(x, dout, dy):
        torch.addcmul(shift[i], single.copy_(part), scale[i], out=y)
        torch.ops.aten.silu_backward.grad_input(d.copy_(outer), y, grad_input=d)
        to.copy_(d)
        total[i] += d.sum(0)
        along[i] += d.mul_(single).sum(0)
    return dy, total.float(), along.float()


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and inverse deviation of each channel's group, B x C; sums of pieces are added in double
    precision.
    """
    total, squares = torch.zeros(2, *x.shape[:2], dtype=torch.float64)
    for i, (part,), (single,) in _pieces(x):
        total[i] += single.copy_(part).sum(0)
        squares[i] += single.square_().sum(0)
    count = x[0, 0].numel() * x.shape[1] // groups
    mean, second = (_over_groups(sums, groups) / count for sums in (total, squares))
    return mean.float(), ((second - mean.square()).clamp_min(0) + eps).rsqrt().float()


def _over_groups(x_BC: Tensor, groups: int) -> Tensor:
    """Return the sum over each channel's group, B x C."""
    grouped = x_BC.view(len(x_BC), groups, -1)
    sums: Tensor = grouped.sum(-1, keepdim=True).expand_as(grouped).flatten(1)
    return sums


def _pieces(*maps: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Yield the number of the image, the same cells of each channels-last map (m x C), as many buffers in single
    precision.
    """
    channels = maps[0].shape[1]
    cells = max(1, _PIECE // channels)
    buffers = torch.empty(len(maps), cells, channels)
    for i, images in enumerate(zip(*maps, strict=True)):
        rows = [image.movedim(0, -1).view(-1, channels).split(cells) for image in images]  # views: some are written to
        for parts in zip(*rows, strict=True):
            yield i, parts, tuple(buffers[:, : len(parts[0])])


class _ResidualBlock(nn.Module):
    """norm → SiLU → 3x3, twice, with a skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = _NormSilu(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = _NormSilu(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return out


class Encoder(nn.Module):
    """Five stages of stride 2: strides 2, 4, 8, 16, 32. `forward(x_B3SS)` gives the last R, coarse to fine."""

    STAGES = 5

    def __init__(self, width: int, levels: int):
        super().__init__()
        widths = [width // 2, width // 2, width, width, width]
        self.levels = levels
        self.channels = widths[::-1][:levels]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        inputs = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 4, stride=2, padding=1), _ResidualBlock(o))
            for i, o in zip(inputs, widths, strict=True)
        )

    def forward(self, x_B3SS: Tensor) -> list[Tensor]:
        x, outputs = self.stem(x_B3SS), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs[::-1][: self.levels]


class _FeatureDecoder(nn.Module):
    """3x3 convolution, two residual blocks, 1x1: B x D x H x W → B x T x H x W, the grid does not change."""

    def __init__(self, code_dim: int, width: int, outputs: int, levels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(code_dim, width, 3, padding=1), _ResidualBlock(width), _ResidualBlock(width), _NormSilu(width)
        )
        self.output = nn.Conv2d(width, outputs, 1)

    def forward(self, z_BDHW: Tensor) -> Tensor:
        out: Tensor = self.output(self.body(z_BDHW))
        return out


class _PixelDecoder(nn.Module):
    """Upsample from the finest grid to the image, halving the stride each time: B x D x H x W → B x 3 x S x S."""

    def __init__(self, code_dim: int, width: int, outputs: int, levels: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(code_dim, width, 3, padding=1), _ResidualBlock(width))
        doublings = 5 - (levels - 1)  # the encoder's coarsest stride is 2^5, its finest 2^(5 - (R - 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), _ResidualBlock(width)) for _ in range(doublings)
        )
        self.head = nn.Sequential(_NormSilu(width))  # a sequence of one: its name in bundles
        self.output = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, z_BDHW: Tensor) -> Tensor:
        x = self.stem(z_BDHW)
        for block in self.blocks:
            x = block(F.interpolate(x, scale_factor=2.0))
        out: Tensor = self.output(self.head(x))
        return out.sigmoid()


# code width D, width, channels of the target, levels → decoder with a last layer `.output`
DECODERS: dict[str, Callable[[int, int, int, int], nn.Module]] = {"features": _FeatureDecoder, "pixels": _PixelDecoder}
