"""INT8 of the frozen EfficientNets: what goes into a convolution, and its weights, rounded to 8 bit.

After training, with ranges taken from normals (static). The stem stays float32, for it sees the pixels, which may have
16 bit; blocks hand on what they have computed unrounded, so what is read of them has no rounding of its own. Inside a
block every value is between 0 and 6 (ReLU6), so only what goes from block to block needs a range.

Memories, statistics and thresholds are fitted to the rounded network's features: rounding is then part of what normals
vary by. Rounding the network of a finished detector instead loses far more (docs/operations/scoring-and-service.md).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pvqae.model.efficientnet import EfficientNetLite

_RELU6 = 6.0
LARGEST = 127  # of weights, symmetric
TOP = 255  # of what goes in, unsigned


class Steps(NamedTuple):
    """How what goes into a convolution is rounded: to (q - zero) * step with q in 0 ... `TOP`."""

    step: float
    zero: int

    @property
    def low(self) -> float:
        return -self.zero * self.step

    @property
    def high(self) -> float:
        return (TOP - self.zero) * self.step

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` rounded, what lies outside cut off."""
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, TOP)


_INSIDE = Steps(_RELU6 / TOP, 0)


class Conv(nn.Conv2d):
    """Convolution whose input is rounded where it has `steps`, but in an exported graph, which has nodes for that."""

    steps: Steps | None = None

    def rounded(self, x: Tensor) -> Tensor:
        """Return what goes into the convolution."""
        return x if self.steps is None or torch.compiler.is_compiling() else self.steps(x)


@torch.no_grad()
def ranges(network: "EfficientNetLite", views_13HW: Iterable[Tensor], last: int) -> list[float]:
    """Return the largest absolute value of each block's output, up to the block `last`, over RGB views in [0, 1].

    To three digits: the last bits of a sum depend on the number of threads.
    """
    most, where = [0.0] * (last + 1), network.stem.weight.device
    for view in views_13HW:
        outputs = network(view.to(where), tuple(range(last + 1)))
        most = [max(before, float(x.abs().max())) for before, x in zip(most, outputs, strict=True)]
    return [float(f"{value:.3g}") for value in most]


def quantise(network: "EfficientNetLite", most: list[float]) -> None:
    """Round the weights of the blocks that have a range, and from now on what goes into them.

    `most`: of `ranges`. Raises `ValueError` for a range that is not positive.
    """
    if not most or not all(0 < value < float("inf") for value in most):
        raise ValueError(f"expected positive ranges, found {most}")
    before = [_INSIDE, *(Steps(value / LARGEST, LARGEST + 1) for value in most)]  # the stem ends in ReLU6, too
    for block, outside in zip(network.blocks, before, strict=False):
        layers = [x for x in block.modules() if isinstance(x, Conv)]
        for layer in layers:
            layer.steps = outside if layer is layers[0] else _INSIDE
            step = steps_of(layer.weight)[:, None, None, None]
            layer.weight.data = (layer.weight / step).round().clamp(-LARGEST, LARGEST) * step


def steps_of(weight: Tensor) -> Tensor:
    """Return the step of each output channel of a convolution's weights, O."""
    most = weight.detach().abs().flatten(1).amax(1)
    return torch.where(most > 0, most, torch.ones_like(most)) / LARGEST
