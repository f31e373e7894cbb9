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
from flows.supervise import Supervisor
from pvqae.errors import PvqaeError


@dataclass(frozen=True)
class Done:
    stage: str
    outcome: Outcome


class Observer(Protocol):
    """Who wants to know what a stage does: the MLflow runs."""

    def during(self, stage: str) -> AbstractContextManager[None]: ...
    def after(self, done: Done) -> None: ...


# A class, not a dataclass: Prefect looks for futures inside of dataclasses.
class Pipeline:
    """Runs stages that `changed`, or that follow one which did something; DVC decides about the latter."""

    def __init__(self, versioning: Versioning, changed: frozenset[str], observer: Observer) -> None:
        self._versioning = versioning
        self._changed = changed
        self._observer = observer

    def run(self, stage: str, before: Sequence[Done], log: logging.Logger | logging.LoggerAdapter[Any]) -> Done:
        with self._observer.during(stage):
            due = stage in self._changed or any(done.outcome != "unchanged" for done in before)
            done = Done(stage, self._versioning.repro(stage, log.info) if due else "unchanged")
        self._observer.after(done)
        return done


def _repeatable(task: object, run: object, state: Any) -> bool:
    """A killed or crashed stage resumes from its checkpoint; wrong input stays wrong, a cancelled flow cancelled."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.repeatable


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, pipeline: Pipeline, before: list[Done]) -> Done:
    """Run one stage once all `before` have ended."""
    return pipeline.run(name, before, get_run_logger())


Graph = dict[str, tuple[str, ...]]  # stage → the stages that must end before it, in an order that can be run


def first_stages(classes: Mapping[str, Any]) -> Graph:
    """From the raw data to the checked manifest: each waits for the one before it."""
    made = tuple(f"demo@{name}" for name in classes["made"])
    return dict.fromkeys(made, ()) | {"manifest": made, "validate": ("manifest",)}


def class_stages(classes: Mapping[str, Any]) -> Graph:
    """From the checked manifest to the report. A class waits for its own network and prior, not for other classes."""
    graph: Graph = {f"train@{name}": () for name in classes["networks"]}
    network_of = {name: item["network"] for name, item in classes["classes"].items()}
    for name, prior in classes["priors"].items():
        graph[f"prior@{name}"] = tuple(sorted({f"train@{network_of[member]}" for member in prior["classes"]}))
    for name, item in classes["classes"].items():
        graph[f"calibrate@{name}"] = (f"train@{item['network']}", f"prior@{item['prior']}")
        graph[f"evaluate@{name}"] = (f"calibrate@{name}",)
    return graph | {"report": tuple(f"evaluate@{name}" for name in classes["classes"])}


def run(
    graph: Graph, pipeline: Pipeline, supervisor: Supervisor, parallel: int, retries: int, before: Sequence[Done] = ()
) -> list[Done]:
    """Run `graph`, at most `parallel` stages at once. One class's failure does not stop the others.

    Raises `PvqaeError` that names each failed stage, after all others have ended.
    """
    repeated = stage.with_options(retries=retries, retry_delay_seconds=1, retry_condition_fn=_repeatable)
    futures: dict[str, PrefectFuture[Done]] = {}
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
    with runner:
        try:
            for name, needs in graph.items():
                inputs = [*before, *(futures[need] for need in needs)]
                futures[name] = runner.submit(repeated, {"name": name, "pipeline": pipeline, "before": inputs})
            for future in futures.values():
                future.wait()
        except BaseException:
            supervisor.cancel()  # first: leaving the runner waits for its threads
            raise
    return _results(futures)


def _results(futures: Mapping[str, PrefectFuture[Done]]) -> list[Done]:
    # A stage whose input failed stays pending: it has no result, and no fault of its own.
    ended = [future for future in futures.values() if future.state.is_final()]
    results = [future.result(raise_on_failure=False) for future in ended]
    errors = [result for result in results if isinstance(result, PvqaeError)]
    if errors:
        raise PvqaeError(
            "\n".join(map(str, errors)) + "\nOther classes went on. Repair this and run again: what is done stays."
        )
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Done)]
