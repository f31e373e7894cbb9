"""A frozen network compiled for this processor by OpenVINO: float32 in a third of PyTorch's time.

Its values differ from PyTorch's, which are the reference, by rounding. Views go through one at a time, each by one
thread, so their values depend neither on what else is in a batch nor on the number of threads. Where OpenVINO has no
wheel, on a GPU and for an export, PyTorch computes.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pvqae.core.runtime import openvino

if TYPE_CHECKING:
    from pvqae.model.efficientnet import EfficientNetLite

_LIBRARY = "openvino"
_Blocks = tuple[int, ...]
# Never bf16, whatever the processor has; one thread: another number could sum in another order.
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}


@cache
def name(device: str = "cpu") -> str:
    """Return what computes features on `device`, cpu or cuda, with its version: openvino 2026.4.1, or torch 2.13.0."""
    try:
        if device == "cpu":
            return f"{_LIBRARY} {version(_LIBRARY)}"
    except PackageNotFoundError:
        pass
    return f"torch {torch.__version__}"


class Compiled:
    """`network`, asked for the blocks `taps` and `smoothed`, compiled for each size of view that it has met."""

    def __init__(self, network: "EfficientNetLite", taps: _Blocks, smoothed: _Blocks) -> None:
        self._network, self._blocks = network, (taps, smoothed)
        self._forms: dict[tuple[int, ...], Any] = {}
        self._requests: dict[tuple[tuple[int, ...], int], Any] = {}

    def __call__(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return what the network itself does for RGB in [0, 1]."""
        if not self._fits(x_B3HW):
            found: list[Tensor] = self._network(x_B3HW, *self._blocks)
            return found
        views = [view.numpy() for view in torch.split(x_B3HW.contiguous(), 1)]
        threads = min(torch.get_num_threads(), len(views))
        requests = [self._request(views[0].shape, number) for number in range(threads)]
        if threads == 1:
            outputs = _run(requests[0], views)
        else:
            with ThreadPoolExecutor(threads) as pool:
                runs = list(pool.map(_run, requests, [views[number::threads] for number in range(threads)]))
            outputs = [runs[i % threads][i // threads] for i in range(len(views))]
        return [torch.cat(maps) for maps in zip(*outputs, strict=True)]

    @staticmethod
    def _fits(x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
        return plain and name().startswith(_LIBRARY)

    def _request(self, shape: tuple[int, ...], number: int) -> Any:
        """Return what thread `number` asks; a form is compiled once."""
        if shape not in self._forms:
            library = openvino()
            outputs, image = _graph(library.opset13, self._network, *self._blocks, shape)
            model = library.Model(outputs, [image], "features")
            self._forms[shape] = library.Core().compile_model(model, "CPU", _SETTINGS)
        if (shape, number) not in self._requests:
            self._requests[shape, number] = self._forms[shape].create_infer_request()
        return self._requests[shape, number]


def _run(request: Any, views: Sequence[Any]) -> list[list[Tensor]]:
    """Return the outputs for each of `views`, 1 x 3 x H x W."""
    found = (request.infer([view], share_inputs=True) for view in views)
    return [[torch.from_numpy(outputs[i]) for i in range(len(outputs))] for outputs in found]


def _graph(
    ops: Any, network: "EfficientNetLite", taps: _Blocks, smoothed: _Blocks, shape: tuple[int, ...]
) -> tuple[list[Any], Any]:
    """Return outputs and input of `network.forward` in the library's operations, for views of one `shape`."""

    def convolved(x: Any, layer: Any) -> Any:
        weight, bias = (found.detach().numpy() for found in (layer.weight, layer.bias))
        before, after = (layer.edges or layer.padding * 2)[:2]  # on both axes alike
        where = (list(layer.stride), [before] * 2, [after] * 2, [1, 1])
        if layer.groups > 1:
            x = ops.group_convolution(x, ops.constant(weight[:, None]), *where)
        else:
            x = ops.convolution(x, ops.constant(weight), *where)
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
