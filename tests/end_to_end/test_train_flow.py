"""The main job with every real part: clones of this project, real DVC, Prefect, MLflow, and a SIGKILL."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from flows.core import environment

PROJECT = Path(__file__).parents[2]
NAMES = (
    *("pvqae", "flows", "data", "infra", "dvc.yaml", "params.yaml", "pyproject.toml", "constraints.txt", ".gitignore"),
)
DVC = (".dvc/config", ".dvc/.gitignore", ".dvcignore")
# One class, small images, many short steps: the kill must fall into them.
TINY = (
    *("data.categories=[brick]", "image.size=64", "model.width=16", "train.steps=300", "prior.steps=10"),
    *("memory.codes=64", "calibration.folds=2", "evaluation.pictures=1", "compute.threads=1", "train.kappa=0.01"),
)


@dataclass(frozen=True)
class Clone:
    """A project of its own, with a home of its own."""

    root: Path

    @property
    def environ(self) -> dict[str, str]:
        own = {"HOME": str(self.root.parent / "home"), "PYTHONPATH": str(self.root), "PYTHONUNBUFFERED": "1"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        dropped = ("PREFECT_", "MLFLOW_", "XDG_")
        return {k: v for k, v in os.environ.items() if not k.startswith(dropped)} | own | {"PATH": path}

    @property
    def space(self) -> Path:
        return self.root / ".pvqae" / "runs" / "demo"

    def start(self, log: Path, *more: str) -> "subprocess.Popen[bytes]":
        settings = [word for setting in TINY for word in ("--set", setting)]
        command = [sys.executable, "-m", "flows", "train", *settings, *more]
        with log.open("wb") as out:
            return subprocess.Popen(command, cwd=self.root, env=self.environ, stdout=out, stderr=subprocess.STDOUT)

    def train(self, log: Path, *more: str) -> str:
        """Run the flow to its end; what it printed."""
        code = self.start(log, *more).wait(timeout=300)
        text = log.read_text("utf-8", errors="replace")
        assert code == 0, text[-4000:]
        return text

    def bundle_sums(self) -> str:
        return (self.space / "models" / "demo" / "brick" / "bundle" / "SHA256SUMS").read_text()

    def versions(self) -> list[str]:
        client = mlflow.MlflowClient(f"sqlite:///{self.root}/.pvqae/mlflow/mlflow.db")
        return [str(found.version) for found in client.search_model_versions("name = 'pvqae-demo-brick'")]


def clone(place: Path) -> Clone:
    """The working tree's code as a fresh repository: what is tested need not be committed yet."""
    root = place / "project"
    (place / "home").mkdir(parents=True)
    root.mkdir()
    ignored, caches = shutil.ignore_patterns("raw", "gate", "rows", "*.csv"), shutil.ignore_patterns("__pycache__")
    for name in NAMES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, root / name, ignore=ignored if name == "data" else caches)
        else:
            shutil.copyfile(PROJECT / name, root / name)
    for name in DVC:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(PROJECT / name, root / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(root)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a project"]):
        subprocess.run([*git, *words], check=True)
    return Clone(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """An uninterrupted run."""
    project = clone(tmp_path_factory.mktemp("whole"))
    return project, project.train(project.root.parent / "log")


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


def test_a_second_run_does_nothing_and_says_so(whole: tuple[Clone, str]) -> None:
    project, _ = whole
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
    whole: tuple[Clone, str], tmp_path: Path
) -> None:
    project = clone(tmp_path)
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


def test_a_warm_start_goes_on_from_the_champion_and_says_so(whole: tuple[Clone, str]) -> None:
    project, _ = whole
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
    again = project.train(project.root.parent / "warm-again", "--warm")
    assert "Nothing changed" in again


def test_a_class_that_fails_its_checks_does_not_stop_the_others(whole: tuple[Clone, str], tmp_path: Path) -> None:
    """One class has a blank normal, one nothing that can be read; the third is trained and registered."""
    project, _ = whole
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
    settings = ("data.name=plant", "data.source=folder", f"data.root={tmp_path / 'plant'}", "train.steps=5")
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
