"""What docs/extending.md tells to add is added, word for word, and passes the contract of its dict."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pvqae.datasets import sources
from pvqae.samples import images
from tests.docs.commands import ROOT
from tests.flows.gate import test_gate_rules
from tests.pvqae.datasets import test_anomalies, test_sources
from tests.pvqae.features import test_richness
from tests.pvqae.model import test_autoencoder
from tests.pvqae.prior import test_grouping
from tests.pvqae.training import test_budget

TEXT = (ROOT / "docs" / "extending.md").read_text("utf-8")
CODE = r"```python\n# (?P<file>\S+)\n(?P<code>(?:(?!```).)*?)\n"
BLOCK = re.compile(CODE + r'# (?P<dict>[A-Z]+): "(?P<key>\w+)": (?P<value>[^\n]*),\n```', re.DOTALL)
ADDITIONS = {found["dict"]: found for found in BLOCK.finditer(TEXT)}
MARKED = re.findall(r"^## (.*) ✓$", TEXT, re.MULTILINE)


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Adds a block of the page to its module and its dict; returns the new key."""

    def added(name: str) -> str:
        found = ADDITIONS[name]
        module = import_module(found["file"].removesuffix(".py").replace("/", "."))
        space: dict[str, Any] = dict(vars(module))
        exec(compile(found["code"], found["file"], "exec"), space)
        assert found["key"] not in getattr(module, name), "the page adds what is there already"
        monkeypatch.setitem(getattr(module, name), found["key"], eval(found["value"], space))
        return found["key"]

    return added


def test_every_marked_section_is_tested_here() -> None:
    tested = {
        "Dataset layout",
        "Backbone",
        "Richness measure",
        "λ schedule",
        "Synthetic anomaly",
        "Prior grouping",
        "Gate rule",
    }
    assert set(MARKED) == tested
    assert set(ADDITIONS) == {"SOURCES", "BACKBONES", "RICHNESS", "SCHEDULES", "ANOMALIES", "GROUPINGS", "RULES"}


def test_every_file_of_the_table_exists() -> None:
    named = re.findall(r"`((?:pvqae|flows|infra|tests)/[\w/.]+)`", TEXT)
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).exists()]


def test_a_dataset_layout(add: Callable[[str], str], tmp_path: Path) -> None:
    name, contract = add("SOURCES"), test_sources.TestEverySource()
    contract.test_a_missing_folder_is_named(name, tmp_path)
    contract.test_another_layout_is_shown_beside_the_expected_one(name, tmp_path / "other")
    for place in ("accepted/a.png", "rejected/dent_1.png"):
        images.write(tmp_path / "nuts" / "nut" / place, np.full((8, 8, 3), 0.5, dtype=np.float32))
    found = [(item.sample_id, item.kind) for item in sources.scan(name, tmp_path / "nuts")]
    assert found == [("nut/accepted/a", "good"), ("nut/rejected/dent_1", "dent")]


def test_a_backbone(add: Callable[[str], str]) -> None:
    name = add("BACKBONES")
    for levels in (1, 2, 3):
        test_autoencoder.test_backbones_give_the_maps_that_their_spec_promises(name, levels)
        test_autoencoder.test_reconstructions_have_the_shape_of_the_target(name, levels)
    test_autoencoder.test_a_given_allocation_is_used(name)
    test_autoencoder.test_the_vectors_of_padding_are_neither_quantised_nor_decoded(name)


def test_a_richness_measure(add: Callable[[str], str]) -> None:
    name = add("RICHNESS")
    flat, faint, edge = (torch.full((1, 32, 32), 0.5) for _ in range(3))
    faint[:, :, 13:] += 0.02
    edge[:, :, 13:] += 0.4
    grades = torch.cat([flat, faint, edge])
    pictures = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    test_richness.test_costs_are_shares_one_per_patch(name, pictures, grades)
    test_richness.test_the_poorer_a_patch_the_higher_its_cost(name, grades)
    test_richness.test_a_batch_gives_what_each_image_gives_alone(name, pictures)
    test_richness.test_a_cost_belongs_to_its_own_cell(name)


def test_a_schedule(add: Callable[[str], str]) -> None:
    test_budget.test_every_schedule_stays_a_share_of_its_maximum(name=add("SCHEDULES"))


def test_an_anomaly(add: Callable[[str], str]) -> None:
    name, contract = add("ANOMALIES"), test_anomalies.TestEveryAnomaly()
    for grey in (False, True):
        contract.test_changes_only_what_its_mask_says(name, 0, grey)
        contract.test_grows_with_extent_and_only_grows(name, 0, grey)
        contract.test_is_fixed_by_its_generator(name, 0, grey)


def test_a_grouping(add: Callable[[str], str]) -> None:
    test_grouping.test_every_class_is_in_exactly_one_group(add("GROUPINGS"))


def test_a_gate_rule(add: Callable[[str], str]) -> None:
    add("RULES")
    test_gate_rules.test_a_sound_challenger_passes_with_a_line_per_rule()
    verdict = test_gate_rules.judge(test_gate_rules.replace(test_gate_rules.SOUND, defects=3), test_gate_rules.LIMITS)
    assert verdict.outcome == "refused"
    assert "broken: defects: 3, at least 10" in verdict.lines
