"""Clones of this project to run commands in, as users do."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow

PROJECT = Path(__file__).parents[1]
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
    """A project of its own, with a home of its own. `api`: of a Prefect server, or "" for a temporary one."""

    root: Path
    api: str = ""

    @property
    def environ(self) -> dict[str, str]:
        own = {"HOME": str(self.root.parent / "home"), "PYTHONPATH": str(self.root), "PYTHONUNBUFFERED": "1"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own |= {"PATH": path} | ({"PREFECT_API_URL": self.api} if self.api else {})
        dropped = ("PREFECT_", "MLFLOW_", "XDG_")
        return {k: v for k, v in os.environ.items() if not k.startswith(dropped)} | own

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


def clone(place: Path, api: str = "") -> Clone:
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
    return Clone(root, api)
