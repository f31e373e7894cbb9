"""A dozen small textured images, as the loop reads them, for both kinds of backbone."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pvqae.core import config, runtime
from pvqae.features.examples import Examples, prepare
from pvqae.model import backbones
from pvqae.samples import images

MODEL = {"levels": 2, "width": 8, "code_dim": 4, "codes": 16}


@pytest.fixture
def plan() -> runtime.Plan:
    return runtime.Plan("cpu", "float32", 1, 1)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Sums over several threads differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A folder with 12 images of 64 x 64 px, flat above, squares below, and the rows that name them."""
    root, rng = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    for index in range(12):
        picture = np.full((64, 64, 3), 0.5, dtype=np.float32) + 0.02 * rng.standard_normal(3, dtype=np.float32)
        squares = 0.25 * rng.standard_normal((4, 8, 1), dtype=np.float32)
        picture[32:] += np.roll(squares.repeat(8, axis=0).repeat(8, axis=1), (3, 3), axis=(0, 1))  # off the Haar grid
        images.write(root / f"{index:02}.png", picture)
    return root, pd.DataFrame({"path": [f"{index:02}.png" for index in range(12)]})


@pytest.fixture(scope="session")
def params() -> Callable[..., config.Params]:
    def make(backbone: str = "vqgan", **train: object) -> config.Params:
        return config.Params(
            image=config.Image(size=64),
            model=config.Model(backbone=backbone, **MODEL),  # type: ignore[arg-type]
            train=config.Train(**{"steps": 6, "batch": 4, **train}),  # type: ignore[arg-type]
        )

    return make


@pytest.fixture(scope="session")
def examples(textures: tuple[Path, pd.DataFrame], params: Callable[..., config.Params]) -> Callable[[str], Examples]:
    @cache
    def make(backbone: str) -> Examples:
        some = params(backbone)
        network = backbones.make(some.model).eval()
        return prepare(textures[1], textures[0], some.image, network, some.train.richness)

    return make
