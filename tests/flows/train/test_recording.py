"""What stages did, as runs: a tree with each class apart, whoever's network it shares."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.adapters.fakes import FakeRegistry, FakeRun
from flows.core import classes
from flows.train.recording import Recorder
from flows.train.stages import Done
from flows.workspace.workspace import Workspace
from pvqae.core import config

FIGURES = {"image_auroc": 0.9, "pixel_auroc": None}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    params = config.parse({"data": {"name": "x", "source": "folder"}, "model": {"network": "shared"}})
    found = Workspace(tmp_path, tmp_path, params)
    for name in ("a", "b"):
        write(found.layout.class_report(name) / "metrics.json", json.dumps(FIGURES))
        write(found.layout.class_report(name) / "images.csv", "sample_id\n")
        write(found.layout.prior(name) / "history.jsonl", '{"phase": "prior", "fold": null, "step": 1, "loss": 2.0}\n')
    row = '{"phase": "vq", "fold": null, "step": 1, "loss": 0.5}\n'
    write(found.layout.network("all") / "history.jsonl", row)
    return found


@pytest.fixture
def graph(space: Workspace) -> dict[str, Any]:
    return classes.classes(space.params, ["a", "b"])


def record(runs: FakeRegistry, space: Workspace, graph: dict[str, Any], *done: Done) -> dict[tuple[str, ...], FakeRun]:
    """Runs by their path below the parent."""
    parent = runs.start("pvqae-x", "train x")
    with Recorder(runs, parent, space, graph) as recorder:
        for item in done:
            with recorder.during(item.stage):
                pass
            recorder.after(item)

    def path(run: FakeRun) -> tuple[str, ...]:
        return () if run.parent is None else (*path(runs.runs[run.parent]), run.name)

    return {path(run): run for run in runs.runs.values()}


def test_each_class_has_its_own_runs_also_of_a_shared_network(space: Workspace, graph: dict[str, Any]) -> None:
    tree = record(
        FakeRegistry(), space, graph, Done("train@all", "ran"), Done("prior@a", "ran"), Done("evaluate@a", "ran")
    )
    assert set(tree) == {(), ("a",), ("b",), ("a", "train"), ("b", "train"), ("a", "prior"), ("a", "evaluate")}
    for name in ("a", "b"):
        run = tree[name, "train"]
        assert [(point.key, point.value) for point in run.metrics] == [("vq/loss", 0.5)]
        assert run.params["model.network"] == '"shared"'
        assert run.status == "FINISHED"


def test_null_figures_are_left_out(space: Workspace, graph: dict[str, Any]) -> None:
    tree = record(FakeRegistry(), space, graph, Done("evaluate@a", "ran"))
    assert [point.key for point in tree["a", "evaluate"].metrics] == ["image_auroc"]
    assert tree["a", "evaluate"].artifacts == ["metrics.json", "images.csv"]


@pytest.mark.parametrize(("outcome", "cached"), [("ran", "false"), ("restored", "true"), ("unchanged", "true")])
def test_curves_of_cached_stages_say_that_they_are(
    space: Workspace, graph: dict[str, Any], outcome: Any, cached: str
) -> None:
    run = record(FakeRegistry(), space, graph, Done("train@all", outcome))["a", "train"]
    assert run.tags["cached"] == cached
    assert len(run.metrics) == 1


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_open_runs_end_as_the_flow_does(
    space: Workspace, graph: dict[str, Any], error: type[BaseException], status: str
) -> None:
    runs = FakeRegistry()
    recorder = Recorder(runs, runs.start("pvqae-x", "train x"), space, graph)
    recorder.run("a", "train")
    recorder.__exit__(error, error(), None)
    assert {run.status for run in runs.runs.values() if run.parent} == {status}


def test_a_class_that_an_earlier_flow_made_is_recorded_once(space: Workspace, graph: dict[str, Any]) -> None:
    runs = FakeRegistry()
    with Recorder(runs, runs.start("pvqae-x", "train x"), space, graph) as recorder:
        recorder.complete("a")
        recorder.complete("a")
    (evaluate,) = [run for run in runs.runs.values() if run.name == "evaluate"]
    assert evaluate.tags["cached"] == "true"
