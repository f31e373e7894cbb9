"""The graph of stages and how it runs: in order, only what is due, one class's failure alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect import flow

from flows.adapters.fakes import FakeVersioning
from flows.core import classes
from flows.core.processes import Supervisor
from flows.train import stages
from flows.train.stages import Done, Pipeline
from pvqae.core import config

GRAPH = classes.classes(config.parse({"data": {"name": "x", "source": "folder"}}), ["a", "b"])
SHARED = classes.classes(
    config.parse({"data": {"name": "x"}, "model": {"network": "shared"}, "prior": {"grouping": "universal"}}),
    ["a", "b"],
)


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.done: list[Done] = []

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        yield

    def after(self, done: Done) -> None:
        self.done.append(done)


@pytest.mark.parametrize("graph", [GRAPH, SHARED])
def test_every_stage_comes_after_what_it_needs(graph: dict[str, object]) -> None:
    seen: set[str] = set()
    for stage, needs in (stages.first_stages(graph) | stages.class_stages(graph)).items():
        assert set(needs) <= seen, stage
        seen.add(stage)


def test_a_class_waits_for_its_own_network_and_prior_only() -> None:
    graph = stages.class_stages(GRAPH)
    assert graph["calibrate@a"] == ("train@a", "prior@a")
    assert graph["prior@a"] == ("train@a",)
    assert stages.class_stages(SHARED)["calibrate@a"] == ("train@all", "prior@all")
    assert stages.first_stages(SHARED)["manifest"] == ("demo@x",)


def run(files: FakeVersioning, retries: int = 0) -> tuple[list[Done], list[str]]:
    @flow(name="test")
    def work() -> tuple[list[Done], list[str]]:
        with Supervisor() as supervisor:
            pipeline = Pipeline(files, files.status(), Notes())
            return stages.run(stages.each(stages.class_stages(GRAPH)), pipeline, supervisor, 2, retries)

    return work()


@pytest.mark.usefixtures("prefect_server")
def test_only_changed_stages_and_those_after_them_are_looked_at() -> None:
    files = FakeVersioning(changed={"calibrate@b"})
    made, failed = run(files)
    done = {item.stage: item.outcome for item in made}
    assert not failed
    assert [stage for stage, outcome in done.items() if outcome == "ran"] == ["calibrate@b"]
    assert files.asked == ["calibrate@b", "evaluate@b"]  # the needs of others did not change: DVC is not even asked
    assert len(done) == 8


@pytest.mark.usefixtures("prefect_server")
def test_one_failed_class_is_named_and_the_other_goes_on() -> None:
    files = FakeVersioning(changed={"train@a", "train@b", "evaluate@b"}, failing={"train@a": 2})
    made, failed = run(files, retries=1)
    assert len(failed) == 1
    assert "stage train@a failed" in failed[0]
    assert {item.stage for item in made} == {"train@b", "prior@b", "calibrate@b", "evaluate@b"}
    assert files.ran == ["train@b", "evaluate@b"]
    assert files.asked.count("train@a") == 1  # wrong input is not tried again


@pytest.mark.usefixtures("prefect_server")
def test_a_crashed_stage_is_tried_again() -> None:
    files = FakeVersioning(changed={"train@a"}, failing={"train@a": -9})
    _, failed = run(files, retries=1)
    assert "exit -9" in failed[0]
    assert files.asked.count("train@a") == 2
