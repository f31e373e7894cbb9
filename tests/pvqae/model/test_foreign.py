"""Networks of timm and transformers as backbones. Random weights stand in for trained ones."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from pvqae.core.config import Model
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.model import backbones, efficientnet, foreign, weights
from pvqae.model.backbones import Backbone

if find_spec("timm") is None or find_spec("transformers") is None:
    pytest.skip("the extra pvqae[backbones] is not installed", allow_module_level=True)

Write = Callable[..., str]
DINO = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


@cache
def timm_weights(name: str) -> bytes:
    torch.manual_seed(0)
    network = foreign.library("timm").create_model(name, pretrained=False)
    return save({key: x.contiguous() for key, x in network.state_dict().items()})


def made(name: str, size: int = 64, data: bytes | None = None, **settings: Any) -> Backbone:
    data = timm_weights(name) if data is None else data
    pin = hashlib.sha256(data).hexdigest()[:16]
    family = "" if name.startswith("hf:") else "timm:"
    return backbones.make(Model(backbone=f"{family}{name}@{pin}", **settings), data, size).eval()


def names(backbone: Backbone) -> list[str]:
    facts = backbone.facts()
    assert facts is not None
    return [tap["name"] for tap in facts["taps"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a small Dinov2Model, built from its configuration, with random weights."""
    transformers = foreign.library("transformers")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**DINO)).save_pretrained(tmp_path / "dino")
    about = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(about), "utf-8")
    return tmp_path / "dino"


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pvqae" / "backbones"


def packaged_for_timm() -> bytes:
    """The packaged weights under timm's names: the same tensors in the same order."""
    empty = foreign.library("timm").create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    own = [x for key, x in efficientnet.packaged_tensors().items() if not key.endswith("num_batches_tracked")]
    wanted = [key for key in empty if not key.endswith("num_batches_tracked")]
    assert [tuple(x.shape) for x in own] == [tuple(empty[key].shape) for key in wanted]
    counts = {key: x for key, x in empty.items() if key.endswith("num_batches_tracked")}
    return save({key: x.contiguous() for key, x in zip(wanted, own, strict=True)} | counts)


def test_the_packaged_weights_give_the_features_of_our_own_network() -> None:
    shift = {"mean": (127 / 255,) * 3, "deviation": (128 / 255,) * 3}
    theirs, ours = made("tf_efficientnet_lite0", 96, packaged_for_timm(), **shift), backbones.make(Model()).eval()
    assert theirs.spec.channels == ours.spec.channels
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found, expected = theirs(pixels), ours(pixels)
    pairs = [*zip(found.levels, expected.levels, strict=True), (theirs.joint(found), ours.joint(expected))]
    for mine, own in pairs:
        assert mine.shape == own.shape
        assert (mine - own).abs().max() <= 2e-4 * own.abs().max()


@pytest.mark.parametrize(
    ("name", "taps", "channels"),
    [
        ("resnet18", ["layer4", "layer3", "layer2", "layer1"], (512, 256, 128)),
        ("convnextv2_atto", ["stages.3", "stages.2", "stages.1", "stages.0"], (320, 160, 80)),
        ("vit_small_patch14_dinov2", ["blocks.8", "blocks.5", "blocks.2"], (384, 384, 384)),
        ("vit_small_patch16_dinov3", ["blocks.8", "blocks.5", "blocks.2"], (384, 384, 384)),
    ],
)
def test_a_network_of_timm_gives_three_resolutions(name: str, taps: list[str], channels: tuple[int, ...]) -> None:
    backbone = made(name)
    found = backbone(torch.rand(2, 3, 64, 64))
    assert names(backbone) == taps
    assert backbone.spec.channels == channels
    assert [tuple(x.shape) for x in found.levels] == [(2, c, 2 << r, 2 << r) for r, c in enumerate(channels)]
    assert found.target.shape == (2, sum(backbone.spec.groups), 8, 8)
    assert backbone.weights_sha256 == hashlib.sha256(timm_weights(name)).hexdigest()
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(("size", "side"), [(320, 322), (512, 518)])
def test_positions_of_a_transformer_are_brought_to_the_size_of_the_views(size: int, side: int) -> None:
    backbone = made("vit_small_patch14_dinov2", size)
    facts = backbone.facts()
    assert facts is not None
    assert facts["side"] == side
    body = backbone.network.network.body
    assert body.pos_embed.shape == (1, (side // 14) ** 2 + 1, 384)
    assert backbone(torch.rand(1, 3, size, size)).levels[0].shape == (1, 384, size // 32, size // 32)


def test_a_folder_of_hugging_face_is_read_as_its_library_reads_it(folder: Path) -> None:
    backbone = made(f"hf:{folder}", 64, weights.from_folder(folder))
    assert names(backbone) == ["layer.2", "layer.1", "layer.0"]
    pixels = torch.rand(2, 3, 64, 64)
    found = backbone.network(pixels)
    model = foreign.library("transformers").AutoModel.from_pretrained(folder).eval()
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    given = torch.nn.functional.interpolate(pixels, (70, 70), mode="bilinear", align_corners=False)
    with torch.no_grad():
        states = model((given - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), output_hidden_states=True).hidden_states
    for mine, state in zip(found, (states[3], states[2], states[1]), strict=True):
        torch.testing.assert_close(mine.flatten(2).transpose(1, 2), state[:, 1:], atol=1e-5, rtol=1e-5)


def test_tokens_are_pooled_by_area() -> None:
    """The mean stays, and a cell takes of each token as much as it covers."""
    tokens = torch.rand(1, 2, 5, 5)
    pooled = backbones._to_grid(tokens, (2, 2))
    torch.testing.assert_close(pooled.mean((2, 3)), tokens.mean((2, 3)))
    assert backbones._areas(5, 2).tolist() == [
        [0.4, 0.4, pytest.approx(0.2), 0, 0],
        [0, 0, pytest.approx(0.2), 0.4, 0.4],
    ]


def test_params_choose_layers_and_preprocessing() -> None:
    chosen = {"taps": ("layer3", "layer2"), "levels": 2, "input": 96, "mean": (0.1,) * 3, "interpolation": "bilinear"}
    backbone = made("resnet18", **chosen)
    facts = backbone.facts()
    assert facts is not None
    assert names(backbone) == ["layer3", "layer2"]
    assert (facts["side"], facts["mean"], facts["interpolation"]) == (96, (0.1,) * 3, "bilinear")
    assert [x.shape[-1] for x in backbone(torch.rand(1, 3, 64, 64)).levels] == [2, 4]


def test_a_bundle_reads_what_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of the library may have other defaults."""
    facts = json.loads(json.dumps(made("resnet18").facts())) | {"mean": [0.3, 0.3, 0.3]}
    data = timm_weights("resnet18")
    again = backbones.make(Model(backbone="timm:resnet18@" + "0" * 16), data, 64, facts)
    assert json.loads(json.dumps(again.facts())) == facts
    facts["taps"][0]["channels"] = 7
    with pytest.raises(ConfigError, match=r"timm:resnet18: expected the layers .*channels=7.*install timm"):
        backbones.make(Model(backbone="timm:resnet18@" + "0" * 16), data, 64, facts)


class TestErrors:
    def test_an_unknown_network_names_near_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"timm:resnet17: no network of timm .* did you mean"):
            made("resnet17", data=timm_weights("resnet18"))

    def test_another_architecture(self) -> None:
        with pytest.raises(
            ConfigError, match=r"timm:resnet34: expected the tensors of this network, found no layer1\.2"
        ):
            made("resnet34", data=timm_weights("resnet18"))

    def test_more_tensors_than_the_network_has(self) -> None:
        with pytest.raises(
            ConfigError, match=r"which it has not \(.* such\); name the network that the weights belong to"
        ):
            made("resnet18", data=timm_weights("resnet34"))

    def test_another_shape(self) -> None:
        tensors = weights.read(timm_weights("resnet18"), "") | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
        with pytest.raises(ConfigError, match=r"conv1.weight of \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)"):
            made("resnet18", data=save(tensors))

    def test_a_missing_tensor_of_hugging_face(self, folder: Path) -> None:
        whole = weights.from_folder(folder)
        tensors = weights.read(whole, "")
        missing = next(key for key in tensors if "layer.1" in key)
        del tensors[missing]
        notes = {name: json.dumps(value) for name, value in weights.notes(whole).items()}
        with pytest.raises(ConfigError, match=r"hf:x: expected the tensors of this network, found no .*layer\.1"):
            made("hf:x", data=save(tensors, notes))

    def test_a_network_without_maps(self, folder: Path) -> None:
        about = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        with pytest.raises(ConfigError, match=r"hf:x: .*vision transformer"):
            made("hf:x", data=save({"a": torch.zeros(1)}, {"config.json": json.dumps(about)}))

    def test_taps_that_are_not_there(self) -> None:
        with pytest.raises(ConfigError, match=r"model.taps: expected layers among act1, layer1, .*, found layer9"):
            made("resnet18", taps=("layer9", "layer2", "layer1"))
        with pytest.raises(ConfigError, match=r"model.taps: expected 3 layers"):
            made("resnet18", taps=("layer2",))

    def test_an_input_that_patches_do_not_divide(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.input: expected a multiple of the patch's 14 pixels, found 64"):
            made("vit_small_patch14_dinov2", input=64)

    def test_a_name_without_the_weights_sha256(self, cache_folder: Path) -> None:
        with pytest.raises(ConfigError, match="run `pvqae backbone add timm:resnet18 FILE`"):
            backbones.make(Model(backbone="timm:resnet18"), None, 64)
        sha256 = weights.keep(timm_weights("resnet18"), {"backbone": "timm:resnet18"})
        with pytest.raises(ConfigError, match=f"kept here: timm:resnet18@{sha256[:16]}"):
            backbones.make(Model(backbone="timm:resnet18"), None, 64)

    def test_an_unknown_family(self) -> None:
        with pytest.raises(ConfigError, match="expected one of timm:, hf:, found open_clip:x"):
            backbones.make(Model(backbone="open_clip:x"), None, 64)

    def test_weights_that_are_not_here(self, cache_folder: Path) -> None:
        with pytest.raises(IntegrityError, match="found none; run `pvqae backbone add timm:resnet18 FILE`"):
            backbones.make(Model(backbone="timm:resnet18@" + "0" * 16, weights="gone.safetensors"), None, 64)

    def test_the_extra_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(foreign, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"the package timm is missing; install pvqae\[backbones\]"):
            made("resnet18")
