"""The stages of dvc.yaml as Prefect tasks: only what changed runs, as many at once as the plan says."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.adapters.versioning import Outcome, StageFailed, Versioning
from flows.core.processes import Supervisor
from flows.machines.fan_out import FanOut
from flows.machines.job_spec import Chain, Chains
from pvqae.core.errors import PvqaeError


@dataclass(frozen=True)
class Done:
    stage: str
    outcome: Outcome


class Observer(Protocol):
    """Who wants to know what a stage does: the MLflow runs."""

    def during(self, stage: str) -> AbstractContextManager[None]: ...
    def after(self, done: Done) -> None: ...


Log = logging.Logger | logging.LoggerAdapter[Any]


# A class, not a dataclass: Prefect looks for futures inside of dataclasses.
class Pipeline:
    """Runs stages that `changed`, or that follow one which did something; DVC decides about the latter.

    With `fan_out` they are done on other machines first, and DVC takes the results from there.
    """

    def __init__(
        self, versioning: Versioning, changed: frozenset[str], observer: Observer, fan_out: FanOut | None = None
    ) -> None:
        self._versioning = versioning
        self._changed = changed
        self._observer = observer
        self._fan_out = fan_out

    def run(self, stages: Sequence[str], before: Sequence[Done], log: Log) -> list[Done]:
        """Run `stages` one after another."""
        if self._fan_out and self._due(stages, before):
            self._fan_out.work(stages, log.info)
        made = list(before)
        for stage in stages:
            made.append(self._one(stage, made, log))
        return made[len(before) :]

    def _one(self, stage: str, before: Sequence[Done], log: Log) -> Done:
        with self._observer.during(stage):
            due = self._due([stage], before)
            done = Done(stage, self._versioning.repro(stage, log.info) if due else "unchanged")
        self._observer.after(done)
        return done

    def _due(self, stages: Sequence[str], before: Sequence[Done]) -> bool:
        return not self._changed.isdisjoint(stages) or any(done.outcome != "unchanged" for done in before)


def _repeatable(task: object, run: object, state: Any) -> bool:
    """A killed or crashed stage resumes from its checkpoint; wrong input stays wrong, a cancelled flow cancelled."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.repeatable


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, stages: Chain, pipeline: Pipeline, before: list[list[Done]]) -> list[Done]:
    """Run `stages` once all `before` have ended."""
    return pipeline.run(stages, [done for group in before for done in group], get_run_logger())


Graph = dict[str, tuple[str, ...]]  # stage → the stages that must end before it, in an order that can be run


def first_stages(classes: Mapping[str, Any]) -> Graph:
    """From the raw data to the checked manifest: each waits for the one before it."""
    made = tuple(f"demo@{name}" for name in classes["made"])
    return dict.fromkeys(made, ()) | {"manifest": made, "validate": ("manifest",)}


def class_stages(classes: Mapping[str, Any]) -> Graph:
    """From the checked manifest to figures. A class waits for its own network and prior, not for other classes."""
    graph: Graph = {f"train@{name}": () for name in classes["networks"]}
    network_of = {name: item["network"] for name, item in classes["classes"].items()}
    for name, prior in classes["priors"].items():
        graph[f"prior@{name}"] = tuple(sorted({f"train@{network_of[member]}" for member in prior["classes"]}))
    for name, item in classes["classes"].items():
        graph[f"calibrate@{name}"] = (f"train@{item['network']}", f"prior@{item['prior']}")
        graph[f"evaluate@{name}"] = (f"calibrate@{name}",)
    return graph


def each(graph: Graph) -> Chains:
    """Every stage for itself."""
    return {(name,): tuple((need,) for need in needs) for name, needs in graph.items()}


def run(
    graph: Chains, pipeline: Pipeline, supervisor: Supervisor, parallel: int, retries: int, before: Sequence[Done] = ()
) -> tuple[list[Done], list[str]]:
    """Run `graph`, at most `parallel` chains of stages at once. One class's failure does not stop the others.

    Returns what was done, and what failed for a reason that a person can repair, in words. Raises any other error.
    """
    repeated = stage.with_options(retries=retries, retry_delay_seconds=1, retry_condition_fn=_repeatable)
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
    return _results(futures)


def _results(futures: Mapping[Chain, PrefectFuture[list[Done]]]) -> tuple[list[Done], list[str]]:
    # A stage whose input failed stays pending: it has no result, and no fault of its own.
    ended = [future for future in futures.values() if future.state.is_final()]
    results = [future.result(raise_on_failure=False) for future in ended]
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, PvqaeError):
            raise result
    failed = [str(result) for result in results if isinstance(result, PvqaeError)]
    return [done for result in results if isinstance(result, list) for done in result], failed
