"""The single steps of the train flow's story, in its order."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.adapters import git
from flows.adapters.tracking import Registry, as_metrics
from flows.adapters.versioning import Versioning
from flows.core import classes, environment, lineage
from flows.train import summary
from flows.train.recording import Recorder, ending, experiment
from flows.train.stages import Done
from flows.versions.registration import Registered, Registrar
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core import runtime
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest


@dataclass(frozen=True)
class Asked:
    """Why a run is: `trigger` is manual, schedule, samples or drift; `flow_run` Prefect's id of it."""

    trigger: str
    reason: str
    flow_run: str


def bring_data(space: Workspace, project: Versioning, own: Versioning) -> None:
    """The raw dataset into the project (when data.root is given) and from there into the workspace."""
    name = space.params.data.name
    if space.params.data.root and space.params.data.source != "demo":
        project.add_dataset(name, Path(space.params.data.root).expanduser())
    project.data_hash(name)  # nothing is done where the .dvc file is damaged
    if workspace.bring_dvc_file(space):
        own.checkout(name)


@contextmanager
def parent_run(tracking: Registry, space: Workspace, asked: Asked, quiet: bool) -> Iterator[str]:
    """The run of the whole flow; the caller holds the dataset's lock. `quiet`: nothing changed, so there is nothing to
    measure or to tell twice."""
    tags = {"trigger": asked.trigger, "reason": asked.reason, "flow_run": asked.flow_run}
    tags |= workspace.end_dead_runs(tracking, space.root, experiment(space), "train")
    run = tracking.start(experiment(space), f"train {space.params.data.name}", tags=tags)
    tracking.params(run, workspace.flat_params(space.params))
    try:
        if quiet:
            yield run
        else:
            with tracking.monitored(run):
                yield run
    except BaseException as error:
        tracking.finish(run, ending(error))
        raise
    tracking.finish(run)


def data_warnings(space: Workspace) -> tuple[str, ...]:
    """What the check of the data warned of, images that nothing looks at among it."""
    return tuple(_validation(space).get("warnings", ()))


def _validation(space: Workspace) -> dict[str, Any]:
    file = space.layout.reports / "validation.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}


def without_held_back(space: Workspace, graph: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return why the check of the data holds classes back, in words, and the graph of the others."""
    held = _validation(space).get("held_back", {})
    words = [f"class {name} is held back:\n  {reason}" for name, reason in held.items() if name in graph["classes"]]
    return words, classes.without(graph, held)


def evaluated(
    space: Workspace, graph: Mapping[str, Any], done: Sequence[Done], failed: Sequence[str]
) -> dict[str, Any]:
    """Return the graph of the classes that were evaluated; the report shows no old figures of the others.

    Raises `PvqaeError` with what `failed` where there is no such class.
    """
    ended = {item.stage for item in done}
    missing = [name for name in graph["classes"] if f"evaluate@{name}" not in ended]
    left = classes.without(graph, missing)
    if not left["classes"]:
        raise PvqaeError("\n".join([*failed, "No class is left. Repair this and run again: what is done stays."]))
    for folder in (space.layout.reports / "classes").glob("*"):
        if folder.name not in left["classes"]:
            shutil.rmtree(folder)
    return left


def plan(space: Workspace, networks: int) -> runtime.Plan:
    return runtime.plan(space.params.compute, networks)


def sources_of(space: Workspace) -> dict[str, Path]:
    """What a version is rebuilt from beside the code: name in the workspace → file."""
    files = [space.path / "params.yaml", space.path / "dvc.lock", space.layout.classes_file, space.dvc_file]
    return {file.relative_to(space.path).as_posix(): file for file in files if file.exists()}


def record(space: Workspace) -> str:
    """Commit what this run was made from on `pvqae/data`, each dataset in a folder of its own; returns the commit."""
    name = space.params.data.name
    files = {f"{name}/{path}": file for path, file in sources_of(space).items()}
    return git.record(space.root, files, f"{name}: params, data version and dvc.lock of a train run\n")


def changed_code(before: git.Code, after: git.Code) -> tuple[str, ...]:
    """Code files that differ from the commit, at the start of the run or at its end; a moved HEAD counts too."""
    found = sorted({*before.uncommitted, *after.uncommitted})
    if before.sha != after.sha:
        found.append(f"HEAD moved from {before.sha[:12] or 'nothing'} to {after.sha[:12]} during the run")
    return tuple(found)


def lineage_of(space: Workspace, asked: Asked, git_sha: str, data_sha: str, data_hash: str) -> dict[str, str]:
    """The tags that all classes of a run share; a class adds its bundle, run and parent version."""
    return {
        "git_sha": git_sha,
        "data_sha": data_sha,
        "manifest_sha256": digest(space.layout.manifest),
        "data_hash": data_hash,
        "dvc_lock_sha256": digest(space.path / "dvc.lock"),
        "params_sha256": workspace.params_sha256(space.params),
        "flow_run": asked.flow_run,
        "seed": str(space.params.seed),
        "environment": environment.fingerprint(),
        "trigger": asked.trigger,
        "reason": asked.reason,
    }


def version(registrar: Registrar, recorder: Recorder, category: str) -> Registered:
    """The class's version: the one that equals its bundle already, or a new one."""
    if found := registrar.existing(category):
        return found
    recorder.complete(category)
    return registrar.register(category, recorder.run(category))


def versions(
    registrar: Registrar, recorder: Recorder, categories: Iterable[str]
) -> tuple[tuple[Registered, ...], tuple[str, ...]]:
    """The version of every class, and what failed: one class's failure does not stop the others."""
    found, failed = [], []
    for category in categories:
        try:
            found.append(version(registrar, recorder, category))
        except PvqaeError as error:
            found.append(Registered(category, "", False, "", (str(error),)))
            failed.append(f"{category}: {error}")
    return tuple(found), tuple(failed)


def finish(tracking: Registry, run: str, space: Workspace, result: summary.Summary) -> None:
    """What came of the run, in MLflow and on Prefect's page."""
    tracking.tag(run, {"nothing_changed": str(result.nothing_changed).lower()})
    tracking.metrics(run, as_metrics({"mean": result.figures["mean"]}))
    if not result.nothing_changed:
        tracking.dataset(run, space.params.data.name, digest(space.layout.manifest), str(space.layout.manifest))
        for name, file in sources_of(space).items():
            tracking.artifact(run, file, "/".join(["sources", *name.split("/")[:-1]]))
        if (page := result.report / "index.html").exists():
            tracking.artifact(run, page, "report")
    key = lineage.artifact_key("train", result.dataset)
    create_table_artifact(summary.rows(result), key=key, description=" ".join(summary.sentences(result)))
    create_markdown_artifact(summary.markdown(result), key=lineage.artifact_key("links", result.dataset))
