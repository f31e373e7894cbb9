"""Gate, override, rollback and verify with every real part, on a folder dataset of small textures."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pvqae.datasets import demo
from tests.clones import clone

pytestmark = pytest.mark.integration

MODEL = "pvqae-tiles-part"
TINY = (
    *("data.source=folder", "data.name=tiles", "data.shares={calibrate: 0.2, gate: 0.3, test: 0.1}"),
    *("image.size=64", "model.width=16", "train.steps=20", "prior.steps=5", "memory.codes=64"),
    *("calibration.folds=2", "evaluation.pictures=0", "compute.threads=1", "train.kappa=0.01", "flow.push=false"),
)


@dataclass(frozen=True)
class Clone:
    """A project of its own, with a home of its own."""

    root: Path

    def flows(self, *words: str, expect: int = 0) -> str:
        """Output of one command; its exit code must be `expect`."""
        own = {"HOME": str(self.root.parent / "home"), "PYTHONPATH": str(self.root), "COLUMNS": "200"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "XDG_"))}
        command = [sys.executable, "-m", "flows", *words]
        done = subprocess.run(
            command, cwd=self.root, env=kept | own | {"PATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, f"{words}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def train(self, *settings: str) -> str:
        words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
        return self.flows("train", *words)

    def log(self) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = json.loads(self.flows("promote", "log", "tiles", "--json"))[MODEL]
        return [entry for entry in entries if entry["alias"] == "champion"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The working tree's code as a fresh repository, with a first champion."""
    place = tmp_path_factory.mktemp("promotion")
    demo.make_surfaces(place / "photographs", 110)
    found = Clone(clone(place).root)
    assert "1 champion (new)" in found.train(f"data.root={place / 'photographs'}")
    return found


def test_gate_override_rollback_and_verify(project: Clone) -> None:
    # An equal challenger, of another seed, passes.
    assert "2 challenger (new)" in project.train("seed=1")
    said = project.flows("promote", "run", "tiles", "part", "--reason", "another seed")
    assert "version 2 against 1: pass; it is champion now" in said
    assert "broken" not in said

    # A worse one is refused, with figures; nothing moves.
    assert "3 challenger (new)" in project.train("score.fusion=prior", "score.top=1.0")
    said = project.flows("promote", "run", "tiles", "part", expect=1)
    assert "broken: image AUROC" in said
    assert "version 3 against 2: refused; it was not promoted" in said

    # A person can insist, and take it back.
    project.flows("promote", "run", "tiles", "part", "--override", "shown to a customer")
    project.flows("promote", "rollback", "tiles", "part", "--reason", "misses scratches")
    log = project.log()
    assert [(entry["kind"], entry["from_version"], entry["to_version"]) for entry in log] == [
        *(("initial", "none", "1"), ("gate", "1", "2"), ("override", "2", "3"), ("rollback", "3", "2")),
    ]
    assert all(entry["lineage"]["git_sha"] for entry in log)  # type: ignore[index]

    # The champion can be made again from its lineage alone.
    said = project.flows("verify", MODEL, "2")
    assert f"{MODEL} version 2: reproduced, the rebuilt bundle has the registered hash" in said
    assert "Running stage 'train@part'" in said
