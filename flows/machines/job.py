"""The worker's side of a fan-out: some stages of a dataset, from an order to results in DVC's remote."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, get_run_logger

from flows.adapters.registry import open_registry
from flows.adapters.versioning import Dvc
from flows.core import environment, locks
from flows.core.processes import Supervisor
from flows.machines import job_space, worker
from flows.machines.job_spec import Order, parse
from flows.versions import parents


@flow(name="job", persist_result=False)
def job(order: dict[str, Any], root: str = "") -> None:
    """Do the stages of `order` in a workspace of this worker's project and hand the results over.

    One at a time per device and per dataset on this machine. Raises `StageFailed` with the stage's own words.
    """
    log = get_run_logger()
    project, asked = environment.project_of(root), parse(order)
    with ExitStack() as stack:
        # 1. The device and the workspace are this run's until its last process has ended.
        held = [stack.enter_context(device(lambda name: log.info("another training has device %s: waiting", name)))]
        lock = project / ".pvqae" / "locks" / f"{asked.dataset}.job.lock"
        held.append(stack.enter_context(locks.held(lock, lambda: log.info("another job of this dataset: waiting"))))
        supervisor = stack.enter_context(Supervisor(tuple(held)))

        # 2. Code, params and inputs.
        space = job_space.prepare(project, asked, threads())
        bring_parents(project, asked, space)
        supervisor.start_fork_server(space, set(asked.stages))
        dvc = Dvc(space, supervisor)
        dvc.pull_paths(["data/rows"])
        dvc.pull_paths(job_space.inputs(space, asked))

        # 3. The stages; what an earlier try has finished is not done again.
        for stage in asked.stages:
            log.info("%s: %s", stage, dvc.repro(stage, log.info))

        # 4. Results, where the one who asked takes them.
        dvc.push_results(asked.stages)


@contextmanager
def device(waiting: Any) -> Iterator[int]:
    """The lock of this worker's device, whichever folder its worker lives in; without a device, of this process."""
    name = os.environ.get(worker.DEVICE, "") or f"process-{os.getpid()}"
    folder = Path(tempfile.gettempdir()) / f"pvqae-{os.getuid()}"
    with locks.held(folder / f"device-{name}.lock", lambda: waiting(name)) as held:
        yield held


def threads() -> int:
    """Threads of each process as the worker was started with, 0 for what the params say."""
    return int(os.environ.get(worker.THREADS, "0"))


def bring_parents(project: Path, asked: Order, space: Path) -> None:
    """The champions that networks go on from, from the registry."""
    if not asked.parents:
        return
    setting = yaml.safe_load(asked.files["params.yaml"])["flow"]["tracking_uri"]
    tracking, _ = open_registry(project, setting)
    for network, (model, version) in asked.parents.items():
        parents.bring(tracking, model, version, parents.folder(space, network))
