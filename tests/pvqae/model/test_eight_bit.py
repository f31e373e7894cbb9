"""The frozen network in 8 bit: near float32, computed with integers, never without ranges or for another network."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from pvqae.core.config import Model
from pvqae.core.errors import ConfigError
from pvqae.model import backbones, efficientnet

EIGHT = Model(precision="int8")


@pytest.fixture(scope="module")
def views() -> Tensor:
    """Photographs that ship with scikit-image, 3 x 3 x 96 x 96."""
    found = [data.astronaut()[:96, 150:246], data.coffee()[100:196, 200:296], data.chelsea()[60:156, 100:196]]
    return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).astype(np.float32) / 255)


@pytest.fixture(scope="module")
def backbone(views: Tensor) -> backbones.Backbone:
    found = backbones.make(EIGHT).eval()
    found.quantise(found.ranges(views.split(1)))
    return found


def by_torch(backbone: backbones.Backbone, views: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found: list[Tensor] = backbone.network(views, backbone.taps, backbone.targets)
    return found


def likeness(ours: Tensor, theirs: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])


def test_what_goes_in_is_rounded_to_the_nearest_of_256_values_and_cut_off() -> None:
    steps = efficientnet.Steps(0.5, 128)
    assert (steps.low, steps.high) == (-64.0, 63.5)
    x = torch.tensor([-100.0, -0.3, 0.2, 0.24, 0.26, 63.4, 70.0])
    assert steps(x).tolist() == [-64.0, -0.5, 0.0, 0.0, 0.5, 63.5, 63.5]


def test_weights_are_whole_steps_of_their_channel_and_the_stem_is_as_it_was(backbone: backbones.Backbone) -> None:
    plain = backbones.make(Model()).eval()
    theirs = dict(plain.network.named_modules())
    rounded = [(name, x) for name, x in backbone.network.named_modules() if isinstance(x, efficientnet.Conv)]
    assert len(rounded) == 1 + 16 * 3 - 1  # the first block does not expand
    for name, layer in rounded:
        if name == "stem":
            assert layer.steps is None
            assert torch.equal(layer.weight, theirs[name].weight)
            continue
        step = efficientnet.steps_of(theirs[name].weight)[:, None, None, None]
        whole = layer.weight / step
        assert torch.allclose(whole, whole.round(), atol=1e-3), name
        assert float(whole.abs().max()) <= 127.001
        assert float(((layer.weight - theirs[name].weight) / step).abs().max()) <= 0.501
    # Of a network of its own: others, and the weights that are kept, are not touched.
    assert torch.equal(theirs["blocks.3.expand"].weight, backbones.make(Model()).network.blocks[3].expand.weight)


def test_it_is_near_float32_but_is_not_it(backbone: backbones.Backbone, views: Tensor) -> None:
    plain = backbones.make(Model()).eval()
    for ours, theirs in zip(by_torch(backbone, views), by_torch(plain, views), strict=True):
        assert likeness(ours, theirs) > 0.97
        assert float((ours - theirs).abs().mean()) > 1e-3 * float(theirs.abs().mean())


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO has no wheel for this machine")
def test_the_compiled_network_computes_the_same_with_integers(backbone: backbones.Backbone, views: Tensor) -> None:
    for ours, reference in zip(backbone.run(views), by_torch(backbone, views), strict=True):
        assert likeness(ours, reference) > 0.99
    model = backbone.run._compiled(tuple(views[:1].shape)).get_compiled_model().get_runtime_model()
    layers = [node.get_rt_info() for node in model.get_ops()]
    kinds = [str(facts["runtimePrecision"].astype(str)) for facts in layers if "Conv" in facts["layerType"].astype(str)]
    assert len(kinds) >= 40
    assert sum(kind in ("i8", "u8") for kind in kinds) >= len(kinds) - 1


def test_the_same_view_gives_the_same_bits_whatever_is_beside_it(backbone: backbones.Backbone, views: Tensor) -> None:
    alone = [backbone(view) for view in views.split(1)]
    together = backbone(views)
    assert torch.equal(together.target, torch.cat([one.target for one in alone]))


def test_without_ranges_it_computes_nothing(views: Tensor) -> None:
    with pytest.raises(ConfigError, match="int8 needs ranges of normals, found none; train this class again"):
        backbones.make(EIGHT).eval()(views)


def test_its_facts_make_it_again(backbone: backbones.Backbone, views: Tensor) -> None:
    again = backbones.make(EIGHT, known=backbone.facts()).eval()
    assert torch.equal(again(views).target, backbone(views).target)
    assert backbones.make(Model()).facts() is None


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([1.0] * 3, "expects 16 ranges, found 3"),
        ([1.0] * 15 + [0.0], "positive"),
        ([1.0] * 15 + [float("nan")], "positive"),
    ],
)
def test_ranges_that_can_t_be_are_refused(ranges: list[float], words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        backbones.make(EIGHT, known={"ranges": ranges})


def test_another_network_in_8_bit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="int8 is for the networks efficientnet_lite0, 1 and 2"):
        backbones.make(Model(backbone="vqgan", precision="int8"))


def test_ranges_do_not_depend_on_the_number_of_threads(views: Tensor) -> None:
    network, before = efficientnet.load(efficientnet.weights()), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(efficientnet.ranges(network, views.split(1), 15))
    torch.set_num_threads(before)
    assert found[0] == found[1]
    assert len(found[0]) == 16
