"""Two small bundles of one scorer that differ in their threshold, images, and a service in this process."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import uvicorn
from PIL import Image

from pvqae.core import config
from pvqae.inference import bundle as bundles
from pvqae.inference.scoring import Scorer
from pvqae.serving import app
from pvqae.serving import server as serving_process
from pvqae.serving.middleware import Metrics
from pvqae.serving.slot import Model, ModelSlot, load
from tests.pvqae.conftest import Picture

PARAMS = config.Params(
    data=config.Data(name="tiny"),
    image=config.Image(size=128),
    model=config.Model(width=8, code_dim=4, codes=16),
    prior=config.Prior(width=16),
)
CARD = {"threshold": 100.0, "map_threshold": 2.0, "map_scale": [0.0, 4.0], "rule": "quantile", "scores": [0.1, 0.9],
        "pixel": {"threshold": 50.0}}  # fmt: skip
TOKEN = "a-token-of-the-tests-0123"


@pytest.fixture(scope="session")
def bundle(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Threshold 100. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("first") / "bundle"
    bundles.save(folder, scorer, PARAMS, "sheet", {"warnings": []}, CARD)
    return folder


@pytest.fixture(scope="session")
def newer(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the threshold 5000."""
    folder = tmp_path_factory.mktemp("second") / "bundle"
    bundles.save(folder, scorer, PARAMS, "sheet", {"warnings": []}, CARD | {"threshold": 5000.0})
    return folder


@pytest.fixture(scope="session")
def loaded(bundle: Path) -> Model:
    return load(bundles.read(bundle), "7", {"git_sha": "ab" * 20})


def png(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) in [0, 1] as a file's bytes."""
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def photos(picture: Picture) -> list[bytes]:
    """A normal one, one with a hole, and a wide one, which this scorer has not seen either."""
    dented = picture(31)
    dented[40:70, 50:90] = 0.02
    return [png(picture(30)), png(dented), png(picture(32, 60, 150))]


@dataclass(frozen=True)
class Served:
    """A service on a port of this machine; paths are asked over HTTP, each on a connection of its own."""

    url: str
    slot: ModelSlot
    metrics: Metrics

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=30, **more)

    def value(self, name: str, **labels: str) -> float | None:
        """A metric as /metrics has it."""
        return self.metrics.registry.get_sample_value(name, labels)


@contextmanager
def running(door: app.AccessMiddleware) -> Iterator[str]:
    """The app behind real HTTP; yields its address."""
    server = uvicorn.Server(uvicorn.Config(door, port=0, log_config=None))
    with serving_process.listen(config.Service(port=1).model_copy(update={"port": 0}), "") as connection:
        thread = threading.Thread(target=server.run, args=([connection],))
        thread.start()
        try:
            yield serving_process.address(connection)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serving(loaded: Model) -> Callable[..., Any]:
    """`with serving(token="", model=..., **settings) as served`: a `Served` service, model loaded unless it is None."""

    @contextmanager
    def start(token: str = "", model: Model | None = loaded, **settings: object) -> Iterator[Served]:
        metrics = Metrics()
        slot = ModelSlot(metrics)
        if model is not None:
            slot.put(model)
        door = app.make(slot, config.Service(**settings), metrics, token)  # type: ignore[arg-type]
        with running(door) as url:
            yield Served(url, slot, metrics)

    return start
