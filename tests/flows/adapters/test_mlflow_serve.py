"""`mlflow models serve` gives the scores of the same version: MLflow's own server, for who has it already."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from flows.adapters.registry import Mlflow
from pvqae.inference import bundle as bundles
from tests.pvqae.conftest import picture, scorer  # noqa: F401  # fixtures
from tests.pvqae.serving.conftest import bundle, photos  # noqa: F401  # fixtures

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # MLflow logs a model in this process: of its own types, of pandas
]
MODEL = "pvqae-tiny-sheet"


@contextmanager
def mlflow_serves(database: str, folder: Path, **more: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"MLFLOW_TRACKING_URI": database, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[3]), **more}
    words = ("models", "serve", "-m", f"models:/{MODEL}@champion", "--env-manager", "local", "--port", str(port))
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        cwd=folder, env=os.environ | own, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 90
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def test_it_scores_paths_and_base64_and_paths_can_be_refused(
    bundle: Path, photos: list[bytes], database: str, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    registry, exported = Mlflow(database, tmp_path / "artifacts"), tmp_path / "exported"
    bundles.export(bundle, exported)
    run = registry.start("sheets", "train")
    registry.set_alias(MODEL, "champion", registry.register(MODEL, run, registry.log_model(run, exported), {}))
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, data in zip(files, photos, strict=False):
        file.write_bytes(data)
    expected = [bundles.load(bundle).score(file).image_score for file in files]

    def ask(url: str, texts: list[str]) -> requests.Response:
        return requests.post(url, json={"dataframe_records": [{"image": text} for text in texts]}, timeout=60)

    paths, encoded = [str(file) for file in files], [base64.b64encode(file.read_bytes()).decode() for file in files]
    with mlflow_serves(database, tmp_path) as url:
        for sent in (paths, encoded):
            rows = ask(url, sent).json()["predictions"]
            assert [row["image_score"] for row in rows] == pytest.approx(expected, rel=1e-4)
            assert [row["decision"] for row in rows] == ["normal", "defect"]
            assert len(rows[0]["anomaly_map"]) == 128
    with mlflow_serves(database, tmp_path, PVQAE_NO_PATHS="1") as url:
        assert ask(url, encoded).ok
        assert ask(url, paths).status_code == 400
