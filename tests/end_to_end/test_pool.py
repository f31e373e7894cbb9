"""Classes trained by two workers in folders of their own, which share nothing but the servers and DVC's remote."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from flows.machines import control
from pvqae.core.config import Services
from pvqae.datasets import demo
from tests.clones import clone
from tests.end_to_end.test_operated import flows, until
from tests.end_to_end.test_services import Project

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

TINY = (
    *("data.source=folder", "data.name=pair", "image.size=64", "model.width=16", "prior.steps=5", "memory.codes=64"),
    *("calibration.folds=2", "evaluation.pictures=0", "train.kappa=0.01", "compute.threads=1"),
)
POOL = "flow.train_pool=pvqae-train"


@dataclass(frozen=True)
class Worker:
    """A worker's folder, and the process that works there."""

    root: Path
    process: "subprocess.Popen[bytes]"

    def members(self) -> list[psutil.Process]:
        """Every living process whose environment says that it belongs to this folder."""
        return [item for item in psutil.process_iter() if root_of(item) == str(self.root)]

    def kill(self) -> None:
        """As if its machine lost power."""
        while found := self.members():
            for item in found:
                item.kill()
            psutil.wait_procs(found, timeout=1)

    def commands(self, word: str) -> list[psutil.Process]:
        return [item for item in self.members() if word in " ".join(item.cmdline())]


def root_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("PVQAE_ROOT", "")) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""


def start(plant: Project, name: str) -> Worker:
    """A clone of the project with its own caches and files, and a worker in it on one thread."""
    root = plant.root.parent / name
    if not root.exists():
        subprocess.run(["git", "clone", "--quiet", str(plant.root), str(root)], check=True)
        shutil.copyfile(plant.root / ".dvc" / "config.local", root / ".dvc" / "config.local")
    known = json.loads((plant.root / ".pvqae" / "services" / "env.json").read_text())
    environ = {**plant.environ, **known, "PYTHONPATH": str(root)}
    words = ["worker", "--name", name, "--threads", "1", "--device", f"test-{os.getpid()}-{name}"]
    log = (root.parent / f"{name}.log").open("ab")
    command = [sys.executable, "-m", "flows", *words]
    return Worker(
        root, subprocess.Popen(command, cwd=root, env=environ, stdout=log, stderr=log, start_new_session=True)
    )


@pytest.fixture(scope="module")
def plant(place: Path) -> Iterator[Project]:
    found = Project(clone(place), control.on_free_ports(Services()))
    demo.make(place / "demo")
    for name in ("brick", "gravel"):
        shutil.copytree(place / "demo" / name / "train" / "good", place / "photographs" / name / "good")
    try:
        done = found.up()
        assert done.returncode == 0, done.stdout + done.stderr
        yield found
    finally:
        control.down(found.root, found.settings)


@pytest.fixture
def workers(plant: Project) -> Iterator[tuple[Worker, Worker]]:
    found = (start(plant, "first"), start(plant, "second"))
    yield found
    for worker in found:
        worker.kill()


def settings(plant: Project, *more: str) -> list[str]:
    given = (*TINY, f"data.root={plant.root.parent / 'photographs'}", *more)
    return ["train", *(word for item in given for word in ("--set", item))]


def begin(plant: Project, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flows", *settings(plant, *more)]
    return subprocess.Popen(
        command, cwd=plant.root, env=plant.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def bundles(plant: Project, dataset: str) -> dict[str, str]:
    space = plant.root / ".pvqae" / "runs" / dataset / "models" / dataset
    return {name: (space / name / "bundle" / "SHA256SUMS").read_text() for name in ("brick", "gravel")}


def test_both_workers_train_and_the_flow_has_the_files_of_a_local_run(
    plant: Project, workers: tuple[Worker, Worker]
) -> None:
    said = flows(plant, *settings(plant, "train.steps=20", POOL))
    assert "Taken from DVC's cache: train@" in said
    assert said.count("1 champion (new)") == 2
    logs = [(plant.root.parent / f"{name}.log").read_text() for name in ("first", "second")]
    assert all("calibrate@" in log for log in logs), "one worker did everything"
    flows(plant, *settings(plant, "train.steps=20", "data.name=alone"))
    assert bundles(plant, "pair") == bundles(plant, "alone") or differ_by_name_only(plant)
    assert "0" in flows(plant, *settings(plant, "train.steps=20", POOL))


def differ_by_name_only(plant: Project) -> bool:
    """The dataset's name is in config.json; weights and statistics are the same bytes."""
    lines = [
        {line for text in bundles(plant, name).values() for line in text.splitlines() if "safetensors" in line}
        for name in ("pair", "alone")
    ]
    return lines[0] == lines[1]


def test_a_flow_that_ends_calls_its_workers_off(plant: Project, workers: tuple[Worker, Worker]) -> None:
    flow = begin(plant, "train.steps=5000", POOL)
    until(lambda: all(worker.commands("pvqae train") for worker in workers))
    flow.terminate()
    flow.communicate(timeout=60)
    until(lambda: not any(worker.commands("bin/pvqae") for worker in workers), patience=60)
    assert not any(worker.commands("dvc") for worker in workers)
    assert all(worker.process.poll() is None for worker in workers)
    # Device and workspace are free again: the same two classes are trained by the same two workers.
    said = flows(plant, *settings(plant, "train.steps=21", POOL))
    assert "2 challenger (new)" in said


def test_a_machine_that_dies_costs_a_try_and_another_goes_on(plant: Project, workers: tuple[Worker, Worker]) -> None:
    flow = begin(plant, "train.steps=600", POOL)
    until(lambda: all(worker.commands("pvqae train") for worker in workers))
    workers[0].kill()
    said, _ = flow.communicate(timeout=400)
    assert flow.returncode == 0, said[-4000:]
    assert "3 challenger (new)" in said
    api = f"http://127.0.0.1:{plant.settings.prefect_port}/api"
    asked = {"deployments": {"name": {"any_": ["pool"]}}, "flow_runs": {"state": {"type": {"any_": ["CRASHED"]}}}}
    crashed = requests.post(f"{api}/flow_runs/filter", json=asked, timeout=10).json()
    assert len(crashed) >= 1
