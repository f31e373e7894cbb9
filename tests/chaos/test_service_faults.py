"""Real servers that die in the middle of a flow: it ends well, or says clearly why not, and a rerun repairs all.

Here too: two flows at once on one dataset, and clocks that jump. A slow or dead worker: tests/end_to_end/test_pool.py.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from flows.core import shared_files
from flows.machines import control
from flows.machines.service_files import ServiceFiles
from flows.machines.service_processes import ServiceProcesses
from flows.workspace import workspace
from pvqae.core.config import Services
from pvqae.training.loop import _Timer
from tests import waiting
from tests.chaos import projects
from tests.chaos.figures import Figure, record, size
from tests.chaos.projects import DATASET, MODEL, settings
from tests.clones import Clone
from tests.end_to_end.conftest import place  # noqa: F401 - a private folder
from tests.end_to_end.test_services import Project

BOUND = 900.0  # seconds within which a flow without a server must have ended
LONG_ENOUGH = 3.0  # seconds that a server is away
# What is printed at the moments when a server dies.
MOMENTS = ("Running stage 'train@part'", "Running stage 'evaluate@part'", "Running stage 'report'")


@pytest.fixture(scope="module")
def plant(place: Path) -> Iterator[Project]:  # noqa: F811
    """A project on real servers, nothing trained."""
    made = projects.made(place)
    found = Project(Clone(made.root), control.on_free_ports(Services()))
    try:
        done = found.up()
        assert done.returncode == 0, done.stdout + done.stderr
        yield found
    finally:
        control.down(found.root, found.settings)


@pytest.mark.integration
@pytest.mark.filterwarnings("default")  # MLflow's own, of its import
def test_servers_that_restart_in_mid_run_cost_no_version(plant: Project) -> None:
    """Each server is killed in a training; it is up again seconds later. The rerun, if one is needed, ends well."""
    began, lost, notes, tried = time.monotonic(), [], [], 0
    for service in ("postgres", "mlflow", "prefect"):
        for moment in MOMENTS[: size(1, 3)]:
            tried += 1
            found, ended = killed_in(plant, service, moment, seed=tried)
            notes.append(f"{service}: {ended}")
            lost += [f"{service} at {moment!r}: {text}" for text in found]
    note = "; ".join(sorted(set(notes)))
    what = "PostgreSQL, MLflow and Prefect killed in mid-run: it ends well, or says why and a rerun does"
    record(Figure("32_services", what, tried, max(0, tried - len(lost)), len(lost), time.monotonic() - began, note))
    assert not lost, lost


def killed_in(plant: Project, service: str, moment: str, seed: int) -> tuple[list[str], str]:
    """What was broken after a death of `service` in a training and a rerun; and how the first run ended."""
    words = ["train", *settings(f"data.root={plant.root.parent / 'photographs'}", f"seed={seed}")]
    log = plant.root.parent / "log"
    with log.open("wb") as out:
        flow = subprocess.Popen(
            [*projects.FLOWS, *words], cwd=plant.root, env=plant.environ, stdout=out, stderr=subprocess.STDOUT
        )
    until(lambda: moment in log.read_text(errors="replace"), flow)
    for process in ServiceProcesses(ServiceFiles(plant.root, plant.settings)).members(service):
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(LONG_ENOUGH)
    assert plant.up().returncode == 0
    try:
        code = flow.wait(timeout=BOUND)
    except subprocess.TimeoutExpired:
        flow.kill()
        return ["the flow did not end"], "hung"
    text = log.read_text(errors="replace")
    found = [] if code in (0, 1, 2) else [f"exit {code}: {text[-2000:]}"]
    done = plant.run(*words)
    found += [] if done.returncode == 0 else [f"the rerun: {done.stdout[-2000:]}{done.stderr[-2000:]}"]
    made = versions(plant)
    found += [] if len(made) == seed and len(set(made)) == seed else [f"{len(made)} versions, {len(set(made))} bundles"]
    return found, "the run went on" if code == 0 else "the run failed with its reason, the rerun ended well"


def until(holds: Callable[[], bool], flow: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + BOUND
    while not holds():
        assert flow.poll() is None, "the flow ended before its moment came"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def versions(plant: Project) -> list[str]:
    """The bundle of each version."""
    client = mlflow.MlflowClient(f"http://127.0.0.1:{plant.settings.mlflow_port}")
    return [found.tags["bundle_sha256"] for found in client.search_model_versions(f"name = '{MODEL}'")]


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
def test_two_trainings_at_once_of_one_dataset_follow_each_other(tmp_path: Path) -> None:
    project = projects.made(tmp_path)
    began = time.monotonic()
    logs = [tmp_path / "first", tmp_path / "second"]
    flows = []
    for log in logs:
        with log.open("wb") as out:
            command = [*projects.FLOWS, *projects.train(project, 0)]
            flows.append(
                subprocess.Popen(command, cwd=project.root, env=project.environ, stdout=out, stderr=subprocess.STDOUT)
            )
    codes = [flow.wait(timeout=BOUND) for flow in flows]
    said = [log.read_text(errors="replace") for log in logs]
    lost = [text[-2000:] for code, text in zip(codes, said, strict=True) if code]
    waits = [bool(re.search(f"works on {DATASET}: waiting for its end", text)) for text in said]
    lost += [] if sum(waits) == 1 else [f"{sum(waits)} of two said that they wait"]
    lost += [] if sum("1 champion (new)" in text for text in said) == 1 else ["not one version"]
    lost += [] if sum("Nothing changed" in text for text in said) == 1 else ["the second found something to do"]
    what = "two trainings at once of one dataset: the second waits and says so, both end well"
    record(Figure("33_at_once", what, 2, max(0, 2 - len(lost)), len(lost), time.monotonic() - began))
    assert not lost, lost


def test_who_waits_for_a_dataset_says_so_and_goes_on(tmp_path: Path) -> None:
    """The lock alone: each of several at once holds it alone, and whoever waits tells once."""
    file, told, inside, most = workspace.lock_file(tmp_path, DATASET), [], [], []

    def work(number: int) -> None:
        with shared_files.held(file, waiting=lambda: told.append(number)):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.3)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with shared_files.held(file):
        for thread in threads:
            thread.start()
        waiting.until(lambda: len(told) == 4)
    for thread in threads:
        thread.join(timeout=30)
    assert most == [1] * 4
    assert len(told) == len(set(told)) == 4


@pytest.mark.parametrize("jump", [-(10.0**7), 10.0**7])
def test_the_time_between_checkpoints_does_not_follow_the_clock(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    timer = _Timer(seconds=60)
    monkeypatch.setattr(time, "time", lambda: jump)
    assert not timer.due()
    timer.last -= 61
    assert timer.due()
