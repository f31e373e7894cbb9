"""A frozen network of 8 bit in an exported graph: what goes into its convolutions is rounded by nodes for that, and its
weights are integers.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pvqae.model import efficientnet
from pvqae.model.backbones import Backbone

_PREFIX = "learned.0."  # of the graph's names for the weights of the backbone


def round_convolutions(graph_file: Path, backbone: Backbone) -> None:
    """Write an ONNX graph again with QuantizeLinear and DequantizeLinear where `backbone` rounds.

    Does nothing where it computes in float32. Raises `ValueError` where none of its convolutions is in the graph.
    """
    import onnx

    named = {f"{_PREFIX}{name}.weight": x for name, x in backbone.named_modules() if isinstance(x, efficientnet.Conv)}
    layers = {name: layer for name, layer in named.items() if layer.steps is not None}
    if not layers:
        return
    model = onnx.load(graph_file)
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "Conv" and (layer := layers.pop(node.input[1], None)) is not None:
            nodes += _rounded(model.graph, node, layer)
        nodes.append(node)
    if len(nodes) == len(model.graph.node):
        raise ValueError(f"{graph_file}: expected convolutions of {', '.join(layers)}, found none")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, graph_file)


def _rounded(graph: Any, node: Any, layer: efficientnet.Conv) -> list[Any]:
    """Return the nodes that go before a convolution, which takes what they give."""
    from onnx import helper, numpy_helper

    assert layer.steps is not None
    name, scale = node.input[1], efficientnet.steps_of(layer.weight).numpy()
    weights = (layer.weight.detach().numpy() / scale[:, None, None, None]).round().astype(np.int8)
    constants = {
        f"{name}.step": np.array(layer.steps.step, dtype=np.float32),
        f"{name}.zero": np.array(layer.steps.zero, dtype=np.uint8),
        f"{name}.int8": weights,
        f"{name}.scale": scale,
        f"{name}.middle": np.zeros(len(scale), dtype=np.int8),
    }
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    how, what = [f"{name}.step", f"{name}.zero"], [f"{name}.int8", f"{name}.scale", f"{name}.middle"]
    source, (rounded, back, weight) = node.input[0], (f"{name}.{end}" for end in ("rounded", "back", "float"))
    node.input[0], node.input[1] = back, weight
    return [
        helper.make_node("QuantizeLinear", [source, *how], [rounded]),
        helper.make_node("DequantizeLinear", [rounded, *how], [back]),
        helper.make_node("DequantizeLinear", what, [weight], axis=0),
    ]
