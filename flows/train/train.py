"""The train flow: from a dataset to registered detectors, as a numbered story."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.adapters import git, notifications
from flows.adapters.registry import open_registry
from flows.adapters.tracking import Registry, as_metrics
from flows.adapters.versioning import Dvc, Versioning
from flows.core import classes, environment, lineage
from flows.machines import fan_out
from flows.train import recording, stages
from flows.train.recording import Recorder
from flows.train.stages import Done, Pipeline
from flows.train.summary import ClassesFailed, Summary
from flows.versions import history, notes, promotions, warm_start
from flows.versions import report_page as pages
from flows.versions.registration import Registered, Registrar, read_json
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core import runtime
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest
from pvqae.core.progress import working


@flow(name="train", persist_result=False)
def train(
    root: str,
    params_file: str = "",
    overrides: tuple[str, ...] = (),
    trigger: str = "manual",
    reason: str = "asked for",
    warm: bool = False,
) -> Summary:
    """Train, calibrate, evaluate and register every class of the dataset that the params name.

    `warm`: go on from the champions' weights where there are some, with a third of the steps; else from scratch.
    Only what changed since the last run is done. Raises an error of `pvqae.core.errors` for what the user can repair:
    `ClassesFailed`, with the summary of the other classes, where only some are concerned.
    """
    log = get_run_logger()
    project = Path(root).resolve()
    why = {"trigger": trigger, "reason": reason, "flow_run": flow_run.get_id() or ""}
    with ExitStack() as stack:
        attempt = stack.enter_context(workspace.failures_told(project, "train"))

        # 1. What is asked for; one flow per dataset at a time; no process outlives the flow.
        choice = workspace.choose(project, params_file, overrides)
        attempt.dataset = name = choice.params.data.name
        settings = choice.params.flow
        supervisor = stack.enter_context(workspace.working_on(project, name, log.warning))

        # 2. The workspace with the present code and the raw data in it.
        code = git.code(project)
        space = workspace.prepare(project, choice)
        dvc = Dvc(space.path, supervisor, pull=bool(settings.train_pool))
        with working(f"{name}: bringing the data", log.info):
            _bring_data(space, Dvc(project, supervisor), dvc)

        # 3. The graph of the dataset's classes, what they start from, and which of its stages changed.
        tracking, uri = open_registry(project, settings.tracking_uri)
        graph = classes.classes(space.params, classes.wanted(space.params, space.layout.raw))
        promotions.check_owners(tracking, name, graph["classes"])
        notes.check(tracking, name, classes.there(space.params, space.layout.raw), space.params.data.categories)
        graph = warm_start.place(space, tracking, graph, warm)
        classes.write(space.layout.classes_file, graph)
        changed = dvc.status()
        log.info("changed stages: %s", ", ".join(sorted(changed)) or "none")

        # 4. The run of MLflow; the page of the dataset's history, when it has ended.
        stack.callback(history.write, tracking, project, name)
        parent = stack.enter_context(recording.flow_run(tracking, space, "train", why))
        tracking.params(parent, workspace.flat_params(space.params))
        if changed:
            stack.enter_context(tracking.monitored(parent))
        recorder = stack.enter_context(Recorder(tracking, parent, space, graph))

        # 5. Manifest and validation, then networks, priors and classes, as many at once as the machine allows.
        done: list[Done] = []
        unfit: list[str] = []
        if changed:
            plan = runtime.plan(space.params.compute, len(graph["networks"]))
            log.info("%s", plan)
            supervisor.start_fork_server(space.path, changed)
            run = partial(stages.run, supervisor=supervisor, retries=settings.retries)
            first = stages.each(stages.first_stages(graph))
            done, unfit = run(first, Pipeline(dvc, changed, recorder), parallel=1)
            if unfit:
                raise PvqaeError(space.placed("\n".join(unfit)))
            ready = done[-1:]  # the checked manifest
            unfit, graph = _without_held_back(space, graph)
            for line in unfit:
                log.warning("%s", line)
            pool, wanted = stages.pool(space, dvc, supervisor, tracking, graph, code), stages.class_stages(graph)
            chains = fan_out.chains(wanted) if pool else stages.each(wanted)  # elsewhere a class in one go
            parallel = min(stages.MOST, len(chains)) if pool else plan.parallel
            made, broken = run(chains, Pipeline(dvc, changed, recorder, pool), parallel=parallel, before=ready)
            unfit += broken
            graph = _evaluated(space, graph, made, unfit)
            report_only = Pipeline(dvc, frozenset({"report"}), recorder)
            reported, unreported = run(stages.each({"report": ()}), report_only, parallel=1)
            if unreported:
                raise PvqaeError("\n".join([*unfit, *unreported]))
            done += made + reported

        # 6. Reports where people look, files to the remote, a commit of what this run was made from.
        report = space.publish_reports()
        if settings.push:
            dvc.push()
        sources = {f"{name}/{path}": file for path, file in _sources_of(space).items()}
        data_sha = git.record(project, sources, f"{name}: params, data version and dvc.lock of a train run\n")
        if unsent := git.share(project, settings.git_remote):
            log.warning("%s", unsent)

        # 7. Versions.
        uncommitted = _changed_code(code, git.code(project))
        made_from = why | _lineage_of(space, code.sha, data_sha, dvc.data_hash(name))
        networks = len(graph["networks"])
        registrar = Registrar(
            tracking, supervisor, space, made_from, uncommitted,
            threads=lambda: runtime.plan(space.params.compute, networks).threads,
        )  # fmt: skip
        versions, failed = _versions(registrar, recorder, graph["classes"], log.info)

        # 8. What came of it: first the report's page, which names the versions.
        untold = _told(project, name, versions)
        warned = tuple(map(space.placed, _validation(space).get("warnings", ())))
        pages.publish(tracking, report, name, versions, space.params.data.source == "demo", notes=warned)
        summary = Summary(
            dataset=name,
            figures=read_json(space.layout.reports / "metrics.json"),
            ran=tuple(item.stage for item in done if item.outcome == "ran"),
            restored=tuple(item.stage for item in done if item.outcome == "restored"),
            versions=versions,
            uncommitted=uncommitted if any(not item.version for item in versions) else (),
            report=report,
            tracking_uri=environment.shown(uri),
            mlflow_run=parent,
            warnings=warned,
            untold=untold,
        )
        _finish(tracking, parent, space, summary)
        if unfit or failed:
            raise ClassesFailed([*unfit, *failed], summary)
        return summary


def _bring_data(space: Workspace, project: Versioning, own: Versioning) -> None:
    """Bring the raw dataset into the project (when data.root is given) and from there into the workspace."""
    name = space.params.data.name
    if space.params.data.root and space.params.data.source != "demo":
        project.add_dataset(name, Path(space.params.data.root).expanduser())
    project.data_hash(name)  # nothing is done where the .dvc file is damaged
    if space.bring_dvc_file():
        own.checkout(name)


def _validation(space: Workspace) -> dict[str, Any]:
    """Return what the check of the data says."""
    file = space.layout.reports / "validation.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}


def _without_held_back(space: Workspace, graph: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return why the check of the data holds classes back, in words, and the graph of the others."""
    held = _validation(space).get("held_back", {})
    lines = [f"class {name} is held back:\n  {reason}" for name, reason in held.items() if name in graph["classes"]]
    return [space.placed(line) for line in lines], classes.without(graph, held)


def _evaluated(
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


def _sources_of(space: Workspace) -> dict[str, Path]:
    """Return what a version is rebuilt from besides the code: name in the workspace → file."""
    files = [space.path / "params.yaml", space.path / "dvc.lock", space.layout.classes_file, space.dvc_file]
    return {file.relative_to(space.path).as_posix(): file for file in files if file.exists()}


def _changed_code(before: git.Code, after: git.Code) -> tuple[str, ...]:
    """Return the code files that differ from the commit at the start or the end of the run, and a moved HEAD."""
    found = sorted({*before.uncommitted, *after.uncommitted})
    if before.sha != after.sha:
        found.append(f"HEAD moved from {before.sha[:12] or 'nothing'} to {after.sha[:12]} during the run")
    return tuple(found)


def _lineage_of(space: Workspace, git_sha: str, data_sha: str, data_hash: str) -> dict[str, str]:
    """Return the tags that all classes of a run share; a class adds its bundle, run and parent version."""
    return {
        "git_sha": git_sha,
        "data_sha": data_sha,
        "manifest_sha256": digest(space.layout.manifest),
        "data_hash": data_hash,
        "dvc_lock_sha256": digest(space.path / "dvc.lock"),
        "params_sha256": workspace.params_sha256(space.params),
        "seed": str(space.params.seed),
        "environment": environment.fingerprint(),
    }


def _versions(
    registrar: Registrar, recorder: Recorder, categories: Iterable[str], say: Callable[[str], object]
) -> tuple[tuple[Registered, ...], tuple[str, ...]]:
    """Return the version of every class, the one that equals its bundle already or a new one, and what failed.

    One class's failure does not stop the others.
    """
    found, failed = [], []
    for category in categories:
        try:
            version = registrar.existing(category)
            if not version:
                recorder.complete(category)
                with working(f"{category}: registering its version", say):
                    version = registrar.register(category, recorder.run(category))
            found.append(version)
        except PvqaeError as error:
            found.append(Registered(category, "", False, "", (str(error),)))
            failed.append(f"{category}: {error}")
    return tuple(found), tuple(failed)


def _told(project: Path, dataset: str, versions: Iterable[Registered]) -> tuple[str, ...]:
    """Tell people of first champions, which no gate judges; return what did not reach them."""
    lost: list[str] = []
    for item in (item for item in versions if item.new and item.alias == "champion"):
        subject, model = f"{dataset} {item.category} version {item.version}", lineage.model_name(dataset, item.category)
        text = f"{model} version {item.version} is champion, the first of its class"
        news = notifications.News("promoted", dataset, subject, text, model, item.version, item.reasons)
        lost += notifications.tell(project, news)
    return tuple(lost)


def _finish(tracking: Registry, run: str, space: Workspace, result: Summary) -> None:
    """Keep what came of the run in MLflow and on Prefect's page."""
    tracking.tag(run, {"nothing_changed": str(result.nothing_changed).lower()})
    tracking.metrics(run, as_metrics({"mean": result.figures["mean"]}))
    if not result.nothing_changed:
        tracking.dataset(run, space.params.data.name, digest(space.layout.manifest), str(space.layout.manifest))
        for name, file in _sources_of(space).items():
            tracking.artifact(run, file, "/".join(["sources", *name.split("/")[:-1]]))
        if (page := result.report / "index.html").exists():
            tracking.artifact(run, page, "report")
    key = lineage.artifact_key("train", result.dataset)
    create_table_artifact(result.rows(), key=key, description=" ".join(result.sentences()))
    create_markdown_artifact(result.markdown(), key=lineage.artifact_key("links", result.dataset))
