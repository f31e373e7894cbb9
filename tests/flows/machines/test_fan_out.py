"""Stages on other machines: asked for once, awaited, called off with the flow."""

from collections.abc import Sequence

import pytest

from flows.adapters.fakes import FakePool
from flows.adapters.prefect_client import PoolError, State
from flows.adapters.versioning import StageFailed
from flows.core.processes import Cancelled
from flows.machines.fan_out import FanOut, JobSpec


def job(stages: Sequence[str]) -> JobSpec:
    return JobSpec.of("x", "sha", stages, {"params.yaml": "seed: 0"}, {"a": ("m", "1"), "b": ("n", "2")})


class Remote:
    """Twin of DVC's remote."""

    def __init__(self) -> None:
        self.pushed = self.fetched = 0

    def push(self) -> None:
        self.pushed += 1

    def fetch_results(self) -> None:
        self.fetched += 1


def fan_out(pool: FakePool, remote: Remote, stopped: Sequence[bool] = (False,), patience: float = 60) -> FanOut:
    looks = iter([*stopped, *([stopped[-1]] * 100)])
    return FanOut(pool, remote, job, lambda: next(looks), poll=0, patience=patience)


def test_inputs_go_out_once_and_results_come_back_each_time() -> None:
    pool, remote, said = FakePool(), Remote(), list[str]()
    away = fan_out(pool, remote)
    away.work(["train@a"], said.append)
    away.work(["train@b"], said.append)
    assert (remote.pushed, remote.fetched) == (1, 2)
    assert [asked["order"]["stages"] for asked in pool.asked] == [("train@a",), ("train@b",)]
    assert any("is running" in line for line in said)


def test_a_job_names_the_parents_of_its_own_networks_only() -> None:
    asked = job(["train@a", "prior@a"])
    assert asked.parents == {"a": ("m", "1")}
    assert job(["prior@b"]).parents == {}


@pytest.mark.parametrize(
    ("state", "repeatable"),
    [
        (State("failed", "StageFailed: stage train@a failed (exit 2): bad row"), False),
        (State("failed", "StageFailed: stage train@a failed (exit -9)"), True),
        (State("failed", "no such commit"), False),
        (State("crashed", "the worker's process ended"), True),
        (State("cancelled"), False),
    ],
)
def test_a_failure_has_the_worker_s_words_and_is_tried_again_only_if_that_helps(state: State, repeatable: bool) -> None:
    remote = Remote()
    with pytest.raises(StageFailed, match="train@a") as caught:
        fan_out(FakePool([State("running"), state]), remote).work(["train@a"], print)
    assert caught.value.repeatable is repeatable
    assert state.message in str(caught.value)
    assert remote.fetched == 0


def test_the_end_of_the_flow_calls_the_run_off() -> None:
    pool = FakePool([State("running")])
    with pytest.raises(Cancelled):
        fan_out(pool, Remote(), [False, False, True]).work(["train@a"], print)
    assert pool.cancelled == ["run-1"]


def test_without_any_living_worker_waiting_ends_and_says_what_to_start() -> None:
    pool = FakePool([State("waiting")], online=0)
    with pytest.raises(PoolError, match="python -m flows worker"):
        fan_out(pool, Remote(), patience=0).work(["train@a"], print)
    assert pool.cancelled == ["run-1"]
