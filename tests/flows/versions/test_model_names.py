"""The name of a registered model where a command takes a dataset and a class."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from flows.adapters.fakes import FakeRegistry
from flows.cli import promotion
from flows.core.lineage import Owner
from flows.gate import promote
from flows.versions import promotions, version_bundles
from flows.versions.promotions import PromotionError

MODEL = "pvqae-t-1-cap"  # by its name alone it could be one of the dataset t, class 1-cap


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRegistry:
    found = FakeRegistry()
    for name, owner in ((MODEL, Owner("t-1", "cap")), ("pvqae-t-1-lid", Owner("t-1", "lid"))):
        for _ in range(2):
            run = found.start("x", "run")
            version = found.register(name, run, "bundle", {"mlflow_run": run}, owner)
            promotions.move(found, name, "champion", version, kind="gate", reasons=("a test",))
    monkeypatch.setattr(promotion, "project", lambda: tmp_path)
    monkeypatch.setattr(version_bundles, "check_version", lambda *_: None)  # these hold no detector
    monkeypatch.setattr(promotion, "registry", lambda root, strict=True: found)
    return found


def typed(*words: str) -> Result:
    return CliRunner().invoke(promotion.promote, list(words))


@pytest.mark.parametrize("words", [("t-1", "cap"), (MODEL,)])
def test_log_shows_one_model(registry: FakeRegistry, words: tuple[str, ...]) -> None:
    assert list(json.loads(typed("log", *words, "--json").stdout)) == [MODEL]


def test_log_shows_a_dataset_or_all(registry: FakeRegistry) -> None:
    for words in (("t-1",), ()):
        assert len(json.loads(typed("log", *words, "--json").stdout)) == 2
    asked = typed("log", "t-1", "nut")
    assert f"no model pvqae-t-1-nut is registered; there are: {MODEL}, pvqae-t-1-lid" in asked.stderr


@pytest.mark.parametrize("words", [("t-1", "cap"), (MODEL,)])
def test_rollback_takes_the_name_of_the_model(registry: FakeRegistry, words: tuple[str, ...]) -> None:
    done = typed("rollback", *words, "--reason", "misses scratches")
    assert done.exit_code == 0, done.output
    assert registry.alias(MODEL, "champion") == "1"
    assert registry.alias("pvqae-t-1-lid", "champion") == "2"


def test_run_takes_the_name_of_the_model(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(root: Path, dataset: str, category: str, **_: object) -> SimpleNamespace:
        asked.append((dataset, category))
        return SimpleNamespace(lines=(), sentence=lambda name: name, promoted=True, untold=())

    monkeypatch.setattr(promote, "run", run)
    assert [typed("run", *words).stdout.strip() for words in ((MODEL,), ("t-1", "cap"))] == [MODEL, MODEL]
    assert asked == [("t-1", "cap")] * 2


def test_a_name_without_a_model_is_told_with_those_that_are_there(registry: FakeRegistry) -> None:
    with pytest.raises(PromotionError, match=f"found t-1; registered are {MODEL}, pvqae-t-1-lid"):
        promotions.owner_of(registry, "t-1")


def test_a_model_of_nobody_needs_dataset_and_class_where_its_name_leaves_both_open(registry: FakeRegistry) -> None:
    registry.register("pvqae-a-b-c", registry.start("x", "run"), "bundle", {})
    registry.register("pvqae-b-c", registry.start("x", "run"), "bundle", {}, Owner("b", "c"))
    assert promotions.owner_of(registry, "pvqae-b-c") == Owner("b", "c")
    with pytest.raises(PromotionError, match="name them: DATASET CLASS"):
        promotions.owner_of(registry, "pvqae-a-b-c")
