"""A job on a worker: some stages of a dataset, in a workspace of its own, with results in DVC's remote."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import yaml
from prefect import flow, get_run_logger

from flows.adapters import dvc_files, git
from flows.adapters.registry import open_registry
from flows.adapters.versioning import Dvc
from flows.core import environment, shared_files
from flows.core.processes import Supervisor
from flows.machines import worker
from flows.machines.fan_out import JobSpec
from flows.versions import warm_start
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.samples import classes, manifest


@flow(name="job", persist_result=False)
def job(order: dict[str, Any], root: str = "") -> None:
    """Do the stages of `order` in a workspace of this worker's project and hand the results over.

    One at a time per device and per dataset on this machine. Raises `StageFailed` with the stage's own words.
    """
    log = get_run_logger()
    project, asked = environment.project_of(root), JobSpec.parse(order)
    with ExitStack() as stack:
        # 1. The device and the workspace are this run's until its last process has ended.
        held = [stack.enter_context(_device(lambda name: log.info("another training has device %s: waiting", name)))]
        lock = project / ".pvqae" / "locks" / f"{asked.dataset}.job.lock"
        held.append(
            stack.enter_context(shared_files.held(lock, lambda: log.info("another job of this dataset: waiting")))
        )
        supervisor = stack.enter_context(Supervisor(tuple(held)))

        # 2. Code, params and inputs.
        space = _prepare(project, asked, int(os.environ.get(worker.THREADS, "0")))
        _bring_parents(project, asked, space)
        supervisor.start_fork_server(space, set(asked.stages))
        dvc = Dvc(space, supervisor)
        dvc.pull_paths(["data/rows"])
        dvc.pull_paths(_inputs(space, asked))

        # 3. The stages; what an earlier try has finished is not done again.
        for stage in asked.stages:
            log.info("%s: %s", stage, dvc.repro(stage, log.info))

        # 4. Results, from where the flow that asked takes them.
        dvc.push_results(asked.stages)


@contextmanager
def _device(waiting: Any) -> Iterator[int]:
    """Hold the lock of this worker's device, also against workers of other folders; else of this process."""
    name = os.environ.get(worker.DEVICE, "") or f"process-{os.getpid()}"
    folder = Path(tempfile.gettempdir()) / f"pvqae-{os.getuid()}"
    with shared_files.held(folder / f"device-{name}.lock", lambda: waiting(name)) as held:
        yield held


def _bring_parents(project: Path, asked: JobSpec, space: Path) -> None:
    """Put the champions that networks go on from in place, from the registry."""
    if not asked.parents:
        return
    setting = yaml.safe_load(asked.files["params.yaml"])["flow"]["tracking_uri"]
    tracking, _ = open_registry(project, setting)
    for network, (model, version) in asked.parents.items():
        warm_start.bring(tracking, model, version, space, network)


def _prepare(root: Path, job: JobSpec, threads: int = 0) -> Path:
    """Make the workspace below `root` for `job`; its checkpoints and DVC's cache outlive a killed job.

    Raises `GitError` when the project lacks the commit, `ConfigError` for a file outside of it.
    """
    space = root / ".pvqae" / "jobs" / job.dataset
    git.check_out(root, space, git.needed(root, job.git_sha, "which the train flow runs"))
    dvc_files.share(root, space)
    for name, text in job.files.items():
        write_text(_inside(space, name), text)
    if threads:  # of this worker's processes; no result depends on them beyond rounding
        params = config.load(space / "params.yaml")
        compute = params.compute.model_copy(update={"threads": threads, "parallel": 1})
        write_text(space / "params.yaml", config.dump(params.model_copy(update={"compute": compute})))
    return space


def _inside(space: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ".git" in path.parts:
        raise ConfigError(f"order: expected a path inside of the workspace, found {name}")
    return space / path


def _inputs(space: Path, job: JobSpec) -> list[str]:
    """Return what the stages read and no stage of this job makes: folders of images and masks, networks and priors."""
    layout = Layout(space, job.dataset)
    known = classes.read(layout.classes_file, job.dataset)
    members = sorted({name for stage in job.stages for name in _members(known, stage)})
    files = [layout.class_rows(name, part) for name in members for part in ("normals", "test")]
    frames = [manifest.read(file) for file in files]
    rows = pd.concat(frames) if frames else pd.DataFrame({"path": [], "mask_path": []})
    paths = {*rows["path"], *rows["mask_path"]} - {""}
    # Rows are relative to data/; the synthetic images of the gate are judged by the flow that asked.
    folders = {f"data/{PurePosixPath(path).parent}" for path in paths if path.startswith(("raw/", "masks/"))}
    return sorted(folders) + _models(job, known)


def _members(known: classes.Classes, stage: str) -> tuple[str, ...]:
    kind, _, name = stage.partition("@")
    if kind == "train":
        return known.network(name)
    return known.prior(name).classes if kind == "prior" else (name,)


def _models(job: JobSpec, known: classes.Classes) -> list[str]:
    """Return the outputs of stages of other jobs."""
    wanted: set[str] = set()
    for stage in job.stages:
        kind, _, name = stage.partition("@")
        if kind == "prior":
            wanted |= {f"train@{known.member(member).network}" for member in known.prior(name).classes}
        if kind in ("calibrate", "evaluate"):
            member = known.member(name)
            wanted |= {f"train@{member.network}", f"prior@{member.prior}", f"calibrate@{name}"}
    return sorted(wanted - set(job.stages))
