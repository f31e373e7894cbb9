"""Params of a run, and the networks, priors and classes that follow from them."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.core import classes
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]


def params(**sections: dict[str, object]) -> Params:
    return config.parse(sections)


def test_the_projects_own_params_run_in_the_project() -> None:
    assert workspace.choose(ROOT).own
    assert not workspace.choose(ROOT, overrides=("train.steps=5",)).own
    assert not workspace.choose(ROOT, str(ROOT / "tests" / ".." / "params.yaml"), ("seed=1",)).own


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("data.source=mtsd", "data.root=/x"), "mtsd"),
        (("data.source=mtsd", "data.name=tiles"), "tiles"),
        (("data.source=folder", "data.root=/x/My Parts 2"), "my-parts-2"),
        (("data.source=folder", "data.root=/x/??"), "folder"),
        (("train.steps=5",), "demo"),
    ],
)
def test_another_source_is_another_dataset(overrides: tuple[str, ...], name: str) -> None:
    assert workspace.choose(ROOT, overrides=overrides).params.data.name == name


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.schedule=liner", "train.schedule: expected one of linear, constant, cosine, adaptive; found liner"),
        ("train.richness=noise", "train.richness: expected one of"),
        ("score.fusion=both", "score.fusion: expected one of recon, prior, product, gated; found both"),
        ("model.backbone=resnet", "model.backbone: expected one of efficientnet_lite0"),
        ("data.source=mvtek", "data.source: expected one of"),
        ("data.shares.test=0.8", "data.shares: expected a sum below 1, found 1.05"),
        ("train.steps=0", ""),
    ],
)
def test_a_value_that_a_stage_would_stumble_over_is_told_at_once(override: str, said: str) -> None:
    if not said:
        assert workspace.choose(ROOT, overrides=(override,)).params.train.steps == 0
        return
    with pytest.raises(ConfigError) as error:
        workspace.choose(ROOT, overrides=(override,))
    assert said in str(error.value)


def test_without_a_network_no_score_may_read_one() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps: 0 trains no network"):
        workspace.choose(ROOT, overrides=("train.steps=0", "score.fusion=gated"))


def test_the_names_that_are_checked_have_their_defaults_in_their_dicts() -> None:
    for key, path in workspace._NAMED.items():
        section, name = key.split(".")
        module, _, table = path.rpartition(".")
        assert getattr(getattr(Params(), section), name) in getattr(importlib.import_module(module), table)


def test_the_hash_of_params_sees_what_changes_results_only() -> None:
    base = workspace.params_sha256(params())
    assert workspace.params_sha256(params(compute={"parallel": 7}, flow={"push": False}, data={"root": "/x"})) == base
    assert workspace.params_sha256(params(train={"steps": 7})) != base


def test_the_committed_classes_are_those_of_the_committed_params() -> None:
    committed = yaml.safe_load((ROOT / "data" / "classes.yaml").read_text("utf-8"))
    chosen = workspace.choose(ROOT).params
    assert classes.classes(chosen, classes.wanted(chosen, ROOT / "nowhere")) == committed


def test_shared_network_and_universal_prior_are_the_same_graph_with_fewer_of_them() -> None:
    names = ["b", "a"]
    shared = classes.classes(params(data={"name": "x", "source": "folder"}, model={"network": "shared"}), names)
    assert shared["networks"] == {"all": {"classes": ["a", "b"], "parent": "data/parents/none"}}
    assert shared["priors"]["a"]["allocations"] == "models/x/networks/all"
    assert shared["made"] == {}
    universal = classes.classes(params(data={"name": "x"}, prior={"grouping": "universal"}), names)
    assert universal["priors"] == {"all": {"classes": ["a", "b"], "allocations": "models/x/networks"}}
    assert universal["classes"]["a"] == {"network": "a", "prior": "all"}


def test_an_unknown_grouping_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="universal"):
        classes.classes(params(prior={"grouping": "clusterd"}), ["a"])


def test_the_classes_file_is_written_only_when_it_says_something_else(tmp_path: Path) -> None:
    file, content = tmp_path / "classes.yaml", classes.classes(params(), ["a"])
    assert classes.write(file, content)
    before = file.stat().st_mtime_ns
    assert not classes.write(file, content)
    assert file.stat().st_mtime_ns == before
    assert classes.read(file) == content


def test_a_classes_file_that_was_cut_off_anywhere_is_written_again(tmp_path: Path) -> None:
    file, content = tmp_path / "classes.yaml", classes.classes(params(), ["a", "b"])
    classes.write(file, content)
    whole = file.read_text()
    for kept in range(0, len(whole) - 1, 3):
        file.write_text(whole[:kept])
        assert classes.write(file, content), whole[:kept]
        assert file.read_text() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("networks:", "<<<<<<< HEAD\nnetworks:"),
        lambda text: text + "=======\n>>>>>>> lot-47\n",
        lambda text: "- dataset: demo\n- networks\n",
        lambda text: text.replace("dataset: ", "dataset\t: ["),
    ],
)
def test_any_other_damage_to_a_classes_file_stops(tmp_path: Path, damage: Callable[[str], str]) -> None:
    file, content = tmp_path / "classes.yaml", classes.classes(params(), ["a", "b"])
    classes.write(file, content)
    damaged = damage(file.read_text())
    file.write_text(damaged)
    with pytest.raises(ConfigError, match=r"classes.yaml is not as .* rm "):
        classes.write(file, content)
    assert file.read_text() == damaged


def test_a_dataset_that_is_not_there_says_how_to_bring_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flows data add mvtec"):
        classes.wanted(params(data={"name": "mvtec", "source": "mvtec"}), tmp_path / "mvtec")


def test_a_category_that_is_not_there_is_named(tiny_mvtec: Path) -> None:
    data = {"name": "x", "source": "mvtec"}
    assert classes.wanted(params(data=data), tiny_mvtec) == ["part"]
    with pytest.raises(DataError, match="bottle not in x; it has part"):
        classes.wanted(params(data={**data, "categories": ["bottle"]}), tiny_mvtec)
