"""`pvqae backbone`: a server on this machine stands in for the hub."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pvqae.cli.main import app
from tests.hub import served

if find_spec("timm") is None or find_spec("transformers") is None:
    pytest.skip("the extra pvqae[backbones] is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(*words: str, expect: int = 0) -> str:
    done = CliRunner().invoke(app, ["backbone", *words])
    assert done.exit_code == expect, done.output
    return done.output


def test_nothing_is_fetched_before_its_licence_is_accepted(hub: str, folder: Path) -> None:
    said = told("fetch", "timm:resnet18.a1_in1k", "--hub", hub, expect=2)
    assert "published under the licence apache-2.0" in said
    assert "repeat the command with --accept-licence" in said
    assert "apache-2.0" in told("fetch", "hf:plant/dino", "--hub", hub, expect=2)
    assert not (folder / "cache").exists()


def test_what_is_fetched_is_kept_listed_and_shown(hub: str) -> None:
    said = told("fetch", "timm:resnet18.a1_in1k", "--hub", hub, "--accept-licence")
    name = said.split("backbone: ")[1].strip()
    assert name.startswith("timm:resnet18.a1_in1k@")
    assert f"{name}  46.8 MB  apache-2.0  {hub}/timm/resnet18.a1_in1k@main" in told("list")
    shown = json.loads(told("show", "timm:resnet18.a1_in1k", "--set", "image.size=64", "--json"))
    assert shown["backbone"] == name
    assert shown["levels"] == ["512x2x2", "256x4x4", "128x8x8"]
    assert shown["joint"] == "448x8x8"
    assert [tap["name"] for tap in shown["taps"]] == ["layer4", "layer3", "layer2", "layer1"]
    assert (shown["licence"], shown["interpolation"], shown["side"]) == ("apache-2.0", "bicubic", 64)
    assert shown["milliseconds"] > 0
    assert 40 < shown["megabytes"] < 47
    assert "layer1" in shown["layers"]


def test_a_model_of_hugging_face_is_fetched_with_its_configuration(hub: str) -> None:
    said = told("fetch", "hf:plant/dino", "--hub", hub, "--accept-licence")
    name = said.split("backbone: ")[1].strip()
    shown = json.loads(told("show", name, "--set", "image.size=64", "--json"))
    assert shown["mean"] == [0.4, 0.4, 0.4]
    assert shown["side"] == 70
    assert [tap["name"] for tap in shown["taps"]] == ["layer.2", "layer.1", "layer.0"]


def test_what_the_hub_does_not_have_is_told_with_a_way_out(hub: str) -> None:
    said = told("fetch", "timm:resnet34.a1_in1k", "--hub", hub, "--accept-licence", expect=2)
    assert "404" in said
    assert "download the files there and run `pvqae backbone add`" in said
    assert "correct the name" in told("fetch", "hf:plant/none", "--hub", hub, "--accept-licence", expect=2)
    assert "expected timm:NAME or hf:ORGANISATION/MODEL" in told("fetch", "resnet18", expect=2)
    assert "timm names no published weights" in told("fetch", "timm:resnet1", expect=2)


def test_weights_of_another_network_are_not_kept(hub: str, folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "w.safetensors")
    said = told("add", "timm:resnet18", "w.safetensors", expect=2)
    assert "expected the tensors of this network, found no conv1.weight" in said
    assert not list(folder.rglob("cache/pvqae/backbones/*"))
    assert "expected a file of weights" in told("add", "timm:resnet18", expect=2)


def test_the_installed_network_is_shown_without_any_extra() -> None:
    shown = json.loads(told("show", "efficientnet_lite0", "--set", "image.size=64", "--json"))
    assert shown["levels"] == ["320x2x2", "112x4x4", "40x8x8"]
    assert shown["licence"] == "Apache-2.0"
