"""The main job with every real part: clones of this project, real DVC, Prefect, MLflow, and a SIGKILL."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from PIL import Image

from flows.adapters.prefect_client import HttpCrashes
from flows.core import environment
from tests.chaos import projects
from tests.clones import Clone, clone


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """An uninterrupted run, with a temporary server as on a fresh machine; what follows shares one to save seconds."""
    project = clone(tmp_path_factory.mktemp("whole"))
    return project, project.train(project.root.parent / "log")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = projects.Server(tmp_path_factory.mktemp("prefect"))
    yield server.api
    server.close()


def test_the_flow_registers_a_champion_with_full_lineage(whole: tuple[Clone, str]) -> None:
    project, text = whole
    assert "1 champion (new)" in text
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    version = client.get_model_version_by_alias("pvqae-demo-brick", "champion")
    for tag in ("git_sha", "data_sha", "manifest_sha256", "params_sha256", "bundle_sha256", "flow_run", "environment"):
        assert version.tags[tag]
    assert (project.root / "reports" / "demo" / "index.html").exists()


@pytest.mark.filterwarnings("default")  # MLflow's own, of its import and of its type hints
def test_the_champion_scores_like_the_evaluation(whole: tuple[Clone, str]) -> None:
    project, _ = whole
    mlflow.set_tracking_uri(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    table = pd.read_csv(project.root / "reports" / "demo" / "images.csv").head(2)
    images = [str(project.space / "data" / path) for path in table["path"]]
    model = mlflow.pyfunc.load_model("models:/pvqae-demo-brick@champion")
    found = pd.DataFrame(model.predict(pd.DataFrame({"image": images})))
    assert found["image_score"].to_numpy() == pytest.approx(table["image_score"].to_numpy(), abs=1e-4)
    assert set(found.columns) == {"image_score", "decision", "anomaly_map"}


def test_a_second_run_does_nothing_and_says_so(whole: tuple[Clone, str], api: str) -> None:
    project = replace(whole[0], api=api)
    again = project.train(project.root.parent / "again")
    assert "Nothing changed: no stage ran, no version registered." in again
    assert project.versions() == ["1"]


def test_dvc_alone_agrees_that_nothing_is_left_to_do(whole: tuple[Clone, str]) -> None:
    project, _ = whole
    environ = environment.for_stages(project.space) | {"HOME": project.environ["HOME"]}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project.space,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


def test_a_killed_flow_resumes_and_gives_the_same_bundle_and_one_version(
    whole: tuple[Clone, str], api: str, tmp_path: Path
) -> None:
    project = clone(tmp_path, api)
    flow = project.start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not list(project.space.glob(".pvqae/work/demo/network-brick/*/full/checkpoint.safetensors")):
        assert flow.poll() is None, (tmp_path / "killed").read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    assert not (project.space / "models" / "demo" / "brick").exists()

    text = project.train(tmp_path / "resumed")
    resumed = re.search(r"resumed at step (\d+) of 300", text)
    assert resumed is not None
    assert 0 < int(resumed[1]) < 300
    assert project.bundle_sums() == whole[0].bundle_sums()
    assert project.versions() == ["1"]
    log = yaml.safe_load((project.space / "dvc.lock").read_text())
    assert "train@brick" in log["stages"]
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert {run.info.status for run in runs} == {"KILLED", "FINISHED"}  # of the dead flow, of the other


def test_a_warm_start_goes_on_from_the_champion_and_says_so(whole: tuple[Clone, str], api: str) -> None:
    project = replace(whole[0], api=api)
    text = project.train(project.root.parent / "warm", "--warm")
    assert "0 decoded" in text  # the features of the run from scratch are kept
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    first, second = (client.get_model_version("pvqae-demo-brick", version).tags for version in "12")
    assert first["parent_bundle_sha256"] == "none"
    assert second["parent_bundle_sha256"] == first["bundle_sha256"]
    origin = json.loads((project.space / "models" / "demo" / "networks" / "brick" / "origin.json").read_text())
    assert set(origin["fits"].values()) == {"parent"}
    lock = yaml.safe_load((project.space / "dvc.lock").read_text())
    assert "data/parents/brick" in [dep["path"] for dep in lock["stages"]["train@brick"]["deps"]]


def test_a_class_that_fails_its_checks_does_not_stop_the_others(
    whole: tuple[Clone, str], api: str, tmp_path: Path
) -> None:
    """One class has a blank normal, one nothing that can be read; the third is trained and registered."""
    project = replace(whole[0], api=api)
    rng = np.random.default_rng(0)
    for name in ("blank", "sound", "torn"):
        for number in range(24):
            file = tmp_path / "plant" / name / "good" / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            waves = 120 + 40 * np.sin(np.arange(96) / 7 + rng.normal()) + rng.normal(0, 6, (96, 96))
            pixels = np.full((96, 96), 120) if (name, number) == ("blank", 0) else waves.clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
            if name == "torn":
                file.write_bytes(b"")
    settings = ("data.name=plant", "data.source=folder", f"data.root={tmp_path / 'plant'}", "train.steps=0")
    words = [word for setting in ("data.categories=[]", *settings) for word in ("--set", setting)]
    log = tmp_path / "log"
    assert project.start(log, *words).wait(timeout=300) == 1
    text = log.read_text("utf-8", errors="replace")
    assert "error: class blank is held back:" in text
    assert "shows_something: expected no normal is blank; 1 not: blank/good/000" in text
    assert "class torn is held back:" in text
    assert "Other classes went on." in text
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    assert [model.name for model in client.search_registered_models("name LIKE 'pvqae-plant-%'")] == [
        "pvqae-plant-sound"
    ]
    figures = json.loads((project.root / "reports" / "plant" / "metrics.json").read_text())
    assert list(figures["classes"]) == ["sound"]
    assert figures["not_evaluated"] == ["blank", "torn"]


def test_a_crashed_run_of_a_deployment_is_asked_for_again_once(api: str) -> None:
    def post(path: str, **body: object) -> Any:
        answer = requests.post(f"{api}{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    deployment = post("/deployments/", name="samples", flow_id=post("/flows/", name="retrain")["id"])["id"]
    asked = {"dataset": "parts", "trigger": "samples"}
    for kind in ("CRASHED", "COMPLETED"):
        run = post(f"/deployments/{deployment}/create_flow_run", parameters=asked)
        post(f"/flow_runs/{run['id']}/set_state", state={"type": kind}, force=True)
    crashes = HttpCrashes(api, ("samples", "drift"))
    assert HttpCrashes(api, ("drift",)).unanswered() == []
    [crash] = crashes.unanswered()
    assert (crash.parameters, crash.tries) == (asked, 1)
    crashes.ask_again(crash)
    assert crashes.unanswered() == []
    [again] = post("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert (again["deployment_id"], again["parameters"]) == (deployment, asked)
    post(f"/flow_runs/{again['id']}/set_state", state={"type": "CRASHED"}, force=True)
    assert [crash.tries for crash in crashes.unanswered()] == [2]
