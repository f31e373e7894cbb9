"""What the tests of the flows share; each heavy start (Prefect's server, MLflow's first migration) is paid once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeRegistry
from flows.adapters.tracking import Registry
from flows.core import environment

STAGES = """
vars:
  - data/classes.yaml
stages:
  manifest:
    cmd: python stage.py data/manifest.csv
    deps: [stage.py]
    params: [seed]
    outs: [data/manifest.csv]
  train:
    foreach: ${networks}
    do:
      cmd: python stage.py models/${key}.txt
      deps: [data/manifest.csv]
      outs: ["models/${key}.txt"]
"""
STAGE = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("made")
print("line of the stage")
sys.exit(int(pathlib.Path("exit").read_text()) if pathlib.Path("exit").exists() else 0)
"""


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The environment of the flows, with Prefect's home in a temporary folder."""
    before = dict(os.environ)
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    environment.prepare(tmp_path_factory.mktemp("root"))
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def prefect_server(_environment: None) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def _migrated(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flows.adapters.tracking import own_database

    root = tmp_path_factory.mktemp("mlflow")
    own_database(root)
    return root / ".pvqae" / "mlflow" / "mlflow.db"


@pytest.fixture
def database(_migrated: Path, tmp_path: Path) -> str:
    """The address of a fresh, migrated MLflow database."""
    shutil.copyfile(_migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def run(folder: Path, *command: str) -> str:
    environ = environment.for_stages(folder)
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the code folders of a project and one commit."""
    root = tmp_path / "project"
    for name, text in {
        "pvqae/a.py": "a = 1\n",
        "flows/b.py": "b = 1\n",
        "dvc.yaml": STAGES,
        "stage.py": STAGE,
        "params.yaml": "seed: 0\n",
        "data/classes.yaml": "dataset: demo\nnetworks: {one: {classes: [one]}, two: {classes: [two]}}\n",
        "pyproject.toml": "",
        "constraints.txt": "",
        ".gitignore": ".pvqae/\n/data/raw/?*\n!/data/raw/*.dvc\n/models\n/reports\n/data/manifest.csv\n/exit\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    run(root, "git", "init", "-q", "-b", "main")
    commit(root)
    return root


def commit(root: Path) -> str:
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "state")
    return run(root, "git", "rev-parse", "HEAD")


@pytest.fixture
def project(repository: Path) -> Path:
    """The repository with DVC in it, all committed."""
    run(repository, sys.executable, "-m", "dvc", "init", "-q")
    (repository / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n['remote \"local\"']\n    url = ../.pvqae/remote\n", "utf-8"
    )
    commit(repository)
    return repository


@pytest.fixture
def real(database: str, tmp_path: Path) -> Registry:
    from flows.adapters.registry import Mlflow

    return Mlflow(database, tmp_path / "artifacts")


@pytest.fixture
def twin() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture(params=["real", "twin"])
def registry(request: pytest.FixtureRequest) -> Registry:
    found: Registry = request.getfixturevalue(request.param)
    return found
