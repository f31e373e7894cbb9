"""The compiled network gives PyTorch's values, whatever is in a batch and however many threads there are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pvqae.core.config import Model
from pvqae.model import backbones, efficientnet

if find_spec("openvino") is None:
    pytest.skip("OpenVINO has no wheel for this machine", allow_module_level=True)

QUIET = """
import socket, sys, torch

def refuse(*_):
    raise SystemExit("something connects")

socket.socket.connect = socket.getaddrinfo = refuse
from pvqae.core.config import Model
from pvqae.model import backbones
backbone = backbones.make(Model()).eval()
backbone(torch.rand(1, 3, 64, 64))
print(backbone.engine)
"""


@pytest.fixture(scope="module")
def backbone() -> backbones.Backbone:
    return backbones.make(Model()).eval()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def maps(backbone: backbones.Backbone, pixels: Tensor) -> list[Tensor]:
    found = backbone(pixels)
    return [*found.levels, found.target]


def by_torch(backbone: backbones.Backbone, pixels: Tensor, patch: pytest.MonkeyPatch) -> list[Tensor]:
    with patch.context() as without:
        without.setattr(efficientnet.Compiled, "_fits", staticmethod(lambda x: False))
        return maps(backbone, pixels)


@pytest.mark.parametrize("shape", [(64, 64), (320, 320), (96, 160)])
def test_values_are_those_of_pytorch(
    backbone: backbones.Backbone, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    pixels = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    for own, expected in zip(maps(backbone, pixels), by_torch(backbone, pixels, monkeypatch), strict=True):
        assert own.shape == expected.shape
        assert (own - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("threads")
def test_a_view_s_values_depend_on_nothing_else(backbone: backbones.Backbone) -> None:
    pixels = torch.rand(5, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(1)
    alone = [maps(backbone, view) for view in pixels.split(1)]
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        together = maps(backbone, pixels.contiguous(memory_format=torch.channels_last))
        for i, own in enumerate(alone):
            assert all(torch.equal(x[0], y[i]) for x, y in zip(own, together, strict=True)), number


def test_threads_that_ask_at_once_get_their_own_values(backbone: backbones.Backbone) -> None:
    pixels = torch.rand(24, 3, 96, 96, generator=torch.Generator().manual_seed(2)).split(1)
    expected = [maps(backbone, view) for view in pixels]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(maps, [backbone] * len(pixels), pixels))
    assert all(
        torch.equal(x, y) for one, other in zip(found, expected, strict=True) for x, y in zip(one, other, strict=True)
    )


def test_pytorch_computes_where_there_is_no_wheel(
    backbone: backbones.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    pixels = torch.rand(1, 3, 64, 64)
    expected = by_torch(backbone, pixels, monkeypatch)
    with monkeypatch.context() as bare:
        bare.setattr(efficientnet, "version", missing)
        efficientnet.engine.cache_clear()
        assert backbone.engine == f"torch {torch.__version__}"
        assert all(torch.equal(x, y) for x, y in zip(maps(backbone, pixels), expected, strict=True))
    efficientnet.engine.cache_clear()
    assert backbone.engine.startswith("openvino ")


def test_a_gpu_has_no_use_for_it() -> None:
    assert efficientnet.engine("cuda") == f"torch {torch.__version__}"


def test_nothing_is_told_to_anybody(tmp_path: Path) -> None:
    environ = os.environ | {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", "")}
    (tmp_path / "home").mkdir()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", QUIET], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openvino ")
    left = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file() and "pvqae" not in str(path)]
    assert left == []
