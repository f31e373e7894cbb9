"""Runs are kept, shared, resumed and recorded; what they measure is another test's matter."""

import json
from pathlib import Path

import pandas as pd
import pytest

from flows.adapters import fakes
from flows.experiments import catalogue, measures, runs, subjects
from flows.experiments.catalogue import CLASSES, EXPERIMENTS, FIGURES, Experiment, Figures, FinishedRun
from flows.experiments.runs import _conduct, _Paths
from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError

ONE = Experiment(
    question="?",
    variants={"few": {"train.steps": 1}, "many": {"train.steps": 2}},
    classes=("brick",),
    figures=(),
    plot="image_auroc",
    measure="steps",
    seeds=2,
)


class Kill(BaseException):
    pass


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of each run that was really measured."""
    found: list[int] = []

    def steps(task: measures.Task) -> Figures:
        found.append(task.params.train.steps)
        return {"": {"image_auroc": task.params.train.steps / 10, "aupro": None}}

    monkeypatch.setitem(measures.MEASURES, "steps", steps)
    monkeypatch.setattr(subjects, "load_known", lambda name, *_: subjects.Subject(name, pd.DataFrame(), Path()))
    return found


def go(place: _Paths, registry: fakes.FakeRegistry, experiment: Experiment = ONE) -> list[FinishedRun]:
    return list(_conduct("one", experiment, config.Params(), place, registry))


def test_runs_go_seed_by_seed_and_a_second_time_nothing_is_measured(tmp_path: Path, measured: list[int]) -> None:
    place, registry = _Paths(tmp_path, "one", tmp_path), fakes.FakeRegistry()
    first, second = go(place, registry), go(place, registry)
    assert measured == [1, 2, 1, 2]
    assert [d.planned.params.seed for d in first] == [0, 0, 1, 1]
    assert [d.figures for d in first] == [d.figures for d in second]
    assert [d.kept for d in first + second] == [False] * 4 + [True] * 4


def test_a_kill_costs_the_run_that_it_hit(tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    place, registry = _Paths(tmp_path, "one", tmp_path), fakes.FakeRegistry()
    steps = measures.MEASURES["steps"]

    def killed(task: measures.Task) -> Figures:
        if len(measured) == 2:
            raise Kill
        return steps(task)

    monkeypatch.setitem(measures.MEASURES, "steps", killed)
    with pytest.raises(Kill):
        go(place, registry)
    assert {run.status for run in registry.runs.values()} == {"FINISHED", "KILLED"}
    monkeypatch.setitem(measures.MEASURES, "steps", steps)
    assert [d.kept for d in go(place, registry)] == [True, True, False, False]
    assert measured == [1, 2, 1, 2]


def test_another_experiment_takes_over_what_it_asks_too(tmp_path: Path, measured: list[int]) -> None:
    go(_Paths(tmp_path, "one", tmp_path), fakes.FakeRegistry())
    other = go(_Paths(tmp_path, "other", tmp_path), fakes.FakeRegistry())
    assert all(d.kept for d in other)
    assert len(list((tmp_path / "other" / "runs").glob("*.json"))) == 4


def test_another_seed_class_param_or_measure_is_another_run(measured: list[int]) -> None:
    def keys(experiment: Experiment) -> set[str]:
        return {runs.key(experiment, planned) for planned in experiment.plan(config.Params())}

    base = keys(ONE)
    assert len(base) == 4
    for change in ({"classes": ("grass",)}, {"base": {"train.batch": 3}}, {"measure": "detection"}):
        assert not base & keys(ONE.model_copy(update=change))


def test_runs_lie_below_one_parent_and_none_can_be_promoted(tmp_path: Path, measured: list[int]) -> None:
    registry = fakes.FakeRegistry()
    go(_Paths(tmp_path, "one", tmp_path), registry)
    parent, *nested = registry.runs.values()
    assert parent.parent is None
    assert {run.parent for run in nested} == {"run-0"}
    assert all(run.tags["never_promotable"] == "true" for run in registry.runs.values())
    assert {(m.key, m.value) for m in nested[1].metrics} == {("figures.image_auroc", 0.2)}
    assert json.loads(nested[1].params["train.steps"]) == 2


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_entry_of_the_catalogue_can_be_run(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert set(experiment.classes) <= set(CLASSES)
    assert experiment.measure in measures.MEASURES
    assert {*experiment.figures, experiment.plot} <= set(FIGURES)
    assert experiment.question.endswith(("?", "."))
    for one in (experiment, experiment.quick()):
        planned = one.plan(config.Params())
        assert len(planned) == one.seeds * len(one.classes) * len(one.variants)
        assert len({runs.key(one, p) for p in planned}) == len(planned), "two variants are the same"


def test_an_unknown_experiment_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match="lambda"):
        catalogue.find("lamda")


def test_a_missing_dataset_is_told_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="PVQAE_DATASETS"):
        subjects.load_known("bottle", [tmp_path / "nowhere"], tmp_path / "work", config.Params())
    assert not list((tmp_path / "work").glob("*"))
