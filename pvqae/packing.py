"""Weights as signed bytes with a step per row: a quarter of single precision, for what no score depends on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STEP = ".step"  # after a tensor's name: the step of each of its rows


def steps(x: "Tensor", dim: int) -> "Tensor":
    """The step with which the largest value along `dim` is 127."""
    import torch

    return (x.abs().amax(dim) / 127).clamp_min(torch.finfo(torch.float32).tiny)


def packed(name: str, x: "Tensor") -> dict[str, "Tensor"]:
    """A tensor of two dimensions or more as int8, and its steps: off by half a step at most, 1/254 of the row's largest
    value."""
    import torch

    rows = x.float().flatten(1)
    step = steps(rows, dim=1)
    return {name: (rows / step[:, None]).round().to(torch.int8).view(x.shape), f"{name}{STEP}": step}


def unpacked(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """All of `tensors` in single precision, packed or not; integers that are not packed as they are."""
    found = {}
    for name, x in tensors.items():
        if f"{name}{STEP}" in tensors:
            x = x.float() * tensors[f"{name}{STEP}"].view(-1, *[1] * (x.ndim - 1))
        if not name.endswith(STEP):
            found[name] = x.float() if x.is_floating_point() else x
    return found
