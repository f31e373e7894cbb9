"""The train flow: from a dataset to registered detectors, as a numbered story."""

from contextlib import ExitStack
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.adapters import git
from flows.adapters.registry import open_registry
from flows.adapters.versioning import Dvc
from flows.core import classes, environment
from flows.train import elsewhere, stages, steps
from flows.train.recording import Recorder
from flows.train.stages import Done
from flows.train.summary import ClassesFailed, Summary
from flows.versions import promotions, warm_start
from flows.versions import report_page as pages
from flows.versions.registration import Registrar, read_json
from flows.workspace import workspace
from pvqae.core.errors import PvqaeError


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
    asked = steps.Asked(trigger, reason, flow_run.get_id() or "")

    # 1. What is asked for; one flow per dataset at a time; no process outlives the flow.
    choice = workspace.choose(project, params_file, overrides)
    name, settings = choice.params.data.name, choice.params.flow
    with ExitStack() as stack:
        supervisor = stack.enter_context(workspace.working_on(project, name, log.warning))

        # 2. The workspace with the present code and the raw data in it.
        code = git.code(project)
        space = workspace.prepare(project, choice)
        dvc = Dvc(space.path, supervisor, pull=bool(settings.train_pool))
        steps.bring_data(space, Dvc(project, supervisor), dvc)

        # 3. The graph of the dataset's classes, what they start from, and which of its stages changed.
        tracking, uri = open_registry(project, settings.tracking_uri)
        graph = classes.classes(space.params, classes.wanted(space.params, space.layout.raw))
        promotions.check_owners(tracking, name, graph["classes"])
        graph = warm_start.place(space, tracking, graph, warm)
        classes.write(space.layout.classes_file, graph)
        changed = dvc.status()
        log.info("changed stages: %s", ", ".join(sorted(changed)) or "none")

        # 4. The run of MLflow.
        parent = stack.enter_context(steps.parent_run(tracking, space, asked, quiet=not changed))
        recorder = stack.enter_context(Recorder(tracking, parent, space, graph))

        # 5. Manifest and validation, then networks, priors and classes, as many at once as the machine allows.
        done: list[Done] = []
        unfit: list[str] = []
        if changed:
            plan = steps.plan(space, len(graph["networks"]))
            log.info("%s", plan)
            supervisor.start_fork_server(space.path, changed)
            pipeline = stages.Pipeline(dvc, changed, recorder)
            first = stages.each(stages.first_stages(graph))
            done, unfit = stages.run(first, pipeline, supervisor, 1, settings.retries)
            if unfit:
                raise PvqaeError("\n".join(unfit))
            ready = done[-1:]  # the checked manifest
            unfit, graph = steps.without_held_back(space, graph)
            for line in unfit:
                log.warning("%s", line)
            away = elsewhere.fan_out(space, dvc, supervisor, tracking, graph, code)
            pipeline = stages.Pipeline(dvc, changed, recorder, away)
            chains, parallel = elsewhere.chains(stages.class_stages(graph), settings.train_pool, plan.parallel)
            made, broken = stages.run(chains, pipeline, supervisor, parallel, settings.retries, ready)
            graph = steps.evaluated(space, graph, made, broken)
            pipeline = stages.Pipeline(dvc, frozenset({"report"}), recorder)
            reported, unreported = stages.run(stages.each({"report": ()}), pipeline, supervisor, 1, settings.retries)
            unfit += broken
            if unreported:
                raise PvqaeError("\n".join([*unfit, *unreported]))
            done += made + reported

        # 6. Reports where people look, files to the remote, a commit of what this run was made from.
        report = workspace.publish_reports(space)
        if settings.push:
            dvc.push()
        data_sha = steps.record(space)

        # 7. Versions.
        uncommitted = steps.changed_code(code, git.code(project))
        made_from = steps.lineage_of(space, asked, code.sha, data_sha, dvc.data_hash(name))
        registrar = Registrar(
            tracking,
            supervisor,
            space,
            made_from,
            uncommitted,
            lambda: steps.plan(space, len(graph["networks"])).threads,
        )
        versions, failed = steps.versions(registrar, recorder, graph["classes"])

        # 8. What came of it: first the report's page, which names the versions.
        pages.publish(tracking, report, name, versions, space.params.data.source == "demo")
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
            warnings=steps.data_warnings(space),
        )
        steps.finish(tracking, parent, space, summary)
        if unfit or failed:
            raise ClassesFailed([*unfit, *failed], summary)
        return summary
