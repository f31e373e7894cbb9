"""The stages of dvc.yaml as Prefect tasks, here or on the workers of flow.train_pool: only what changed runs."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.adapters import git
from flows.adapters.prefect_client import PrefectPool
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Handover, Outcome, StageFailed, Versioning
from flows.core.processes import Supervisor
from flows.machines import fan_out
from flows.machines.fan_out import Chain, Chains, FanOut, JobSpec
from flows.versions import warm_start
from flows.workspace.workspace import Workspace
from pvqae.core import plain_yaml
from pvqae.core.errors import ConfigError, PvqaeError
from pvqae.samples.classes import FROM_SCRATCH

MOST = 64  # jobs that wait at once
_DEPLOYMENT = "job/pool"
_Log = logging.Logger | logging.LoggerAdapter[Any]
_Graph = dict[str, tuple[str, ...]]  # stage → the stages that must end before it, in an order that can be run


@dataclass(frozen=True)
class Done:
    """What came of a stage."""

    stage: str
    outcome: Outcome


class _Observer(Protocol):
    """What follows the stages: the MLflow runs."""

    def during(self, stage: str) -> AbstractContextManager[None]: ...
    def after(self, done: Done) -> None: ...


# A class, not a dataclass: Prefect looks for futures inside of dataclasses.
class Pipeline:
    """Runs stages that `changed`, or that follow one which did something; DVC decides about the latter.

    With `fan_out` they are done on other machines first, and DVC takes the results from there.
    """

    def __init__(
        self, versioning: Versioning, changed: frozenset[str], observer: _Observer, fan_out: FanOut | None = None
    ) -> None:
        self._versioning, self._changed, self._observer, self._fan_out = versioning, changed, observer, fan_out

    def run(self, stages: Sequence[str], before: Sequence[Done], log: _Log) -> list[Done]:
        """Run `stages` one after another."""
        if self._fan_out and self._due(stages, before):
            self._fan_out.work(stages, log.info)
        made = list(before)
        for stage in stages:
            made.append(self._one(stage, made, log))
        return made[len(before) :]

    def _one(self, stage: str, before: Sequence[Done], log: _Log) -> Done:
        with self._observer.during(stage):
            due = self._due([stage], before)
            done = Done(stage, self._versioning.repro(stage, log.info) if due else "unchanged")
        self._observer.after(done)
        return done

    def _due(self, stages: Sequence[str], before: Sequence[Done]) -> bool:
        return not self._changed.isdisjoint(stages) or any(done.outcome != "unchanged" for done in before)


def _repeatable(task: object, run: object, state: Any) -> bool:
    """Retry crashes, which resume from a checkpoint, but never bad input or a cancelled flow."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.repeatable


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _stage(name: str, stages: Chain, pipeline: Pipeline, before: list[list[Done]]) -> list[Done]:
    """Run `stages` once all `before` have ended."""
    return pipeline.run(stages, [done for group in before for done in group], get_run_logger())


def first_stages(classes: Mapping[str, Any]) -> _Graph:
    """Return the stages from the raw data to the checked manifest: each waits for the one before it."""
    made = tuple(f"demo@{name}" for name in classes["made"])
    return dict.fromkeys(made, ()) | {"manifest": made, "validate": ("manifest",)}


def class_stages(classes: Mapping[str, Any]) -> _Graph:
    """Return the stages from the checked manifest to figures. A class waits for its own network and prior only."""
    graph: _Graph = {f"train@{name}": () for name in classes["networks"]}
    network_of = {name: item["network"] for name, item in classes["classes"].items()}
    for name, prior in classes["priors"].items():
        graph[f"prior@{name}"] = tuple(sorted({f"train@{network_of[member]}" for member in prior["classes"]}))
    for name, item in classes["classes"].items():
        graph[f"calibrate@{name}"] = (f"train@{item['network']}", f"prior@{item['prior']}")
        graph[f"evaluate@{name}"] = (f"calibrate@{name}",)
    return graph


def each(graph: _Graph) -> Chains:
    """Make every stage a chain of its own."""
    return {(name,): tuple((need,) for need in needs) for name, needs in graph.items()}


def run(
    graph: Chains, pipeline: Pipeline, supervisor: Supervisor, parallel: int, retries: int, before: Sequence[Done] = ()
) -> tuple[list[Done], list[str]]:
    """Run `graph`, at most `parallel` chains of stages at once. One class's failure does not stop the others.

    Returns what was done, and what failed for a reason that a person can repair, in words. Raises any other error.
    """
    repeated = _stage.with_options(retries=retries, retry_delay_seconds=1, retry_condition_fn=_repeatable)
    futures: dict[Chain, PrefectFuture[list[Done]]] = {}
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
    with runner:
        try:
            for chain, needs in graph.items():
                inputs = [list(before), *(futures[need] for need in needs)]
                asked = {"name": " ".join(chain), "stages": chain, "pipeline": pipeline, "before": inputs}
                futures[chain] = runner.submit(repeated, asked)
            for future in futures.values():
                future.wait()
        except BaseException:
            supervisor.cancel()  # first: leaving the runner waits for its threads
            raise
    # A stage whose input failed stays pending: it has no result, and no fault of its own.
    ended = [future for future in futures.values() if future.state.is_final()]
    results = [future.result(raise_on_failure=False) for future in ended]
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, PvqaeError):
            raise result
    failed = [str(result) for result in results if isinstance(result, PvqaeError)]
    return [done for result in results if isinstance(result, list) for done in result], failed


def pool(
    space: Workspace, versioning: Handover, supervisor: Supervisor, registry: Registry, graph: Mapping[str, Any],
    code: git.Code,
) -> FanOut | None:  # fmt: skip
    """Return what asks the workers of flow.train_pool, None where the params name none.

    Raises `ConfigError` for code that is not committed: workers have commits only.
    """
    name = space.params.flow.train_pool
    if not name:
        return None
    if code.uncommitted:
        raise ConfigError(
            f"flow.train_pool: {name}: workers run the commit {code.sha[:12]}, but {', '.join(code.uncommitted[:5])} "
            "differ from it; commit first, or train here with flow.train_pool empty"
        )
    warm = {key: item["classes"] for key, item in graph["networks"].items() if item["parent"] != FROM_SCRATCH}
    found = {key: warm_start.champion(registry, graph["dataset"], members) for key, members in warm.items()}
    parents = {key: version for key, version in found.items() if version}

    def job(asked: Sequence[str]) -> JobSpec:
        return JobSpec.of(space.params.data.name, code.sha, asked, _files(space, graph, asked), parents)

    return FanOut(PrefectPool(name, _DEPLOYMENT), versioning, job, lambda: supervisor.cancelled)


def _files(space: Workspace, graph: Mapping[str, Any], asked: Sequence[str]) -> dict[str, str]:
    """Return what a worker's workspace needs besides the commit, as it is now."""
    lock = (space.path / "dvc.lock").read_text("utf-8")
    texts = {
        "params.yaml": space.params_text,
        "data/classes.yaml": plain_yaml.dump(fan_out.part_of_classes(graph, asked)),
        "dvc.lock": fan_out.part_of_lock(lock, fan_out.above(class_stages(graph), asked)),
        FROM_SCRATCH: (space.path / FROM_SCRATCH).read_text("utf-8"),
    }
    if space.dvc_file.exists():
        texts[space.dvc_file.relative_to(space.path).as_posix()] = space.dvc_file.read_text("utf-8")
    return texts
