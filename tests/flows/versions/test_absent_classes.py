"""A class with a champion whose folder is gone is told, with three ways on that work."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.adapters.tracking import Registry
from flows.cli import promotion
from flows.core import lineage
from flows.core.lineage import Owner
from flows.versions import notes, promotions
from flows.versions.promotions import PromotionError

SCREW = Owner("parts", "screw")
MODEL = "pvqae-parts-screw"


@pytest.fixture
def champion(registry: Registry) -> Registry:
    """A registry with a champion of the class screw."""
    run = registry.start("pvqae-parts", "screw")
    version = registry.register(MODEL, run, "models", {"mlflow_run": run}, SCREW)
    promotions.move(registry, MODEL, "champion", version, kind="initial", reasons=("first",))
    return registry


def test_a_class_that_is_gone_stops_a_run_of_all_classes_or_of_itself(champion: Registry) -> None:
    notes.check(champion, "parts", ["nut", "screw"], ())
    notes.check(champion, "parts", ["nut"], ["nut"])
    notes.check(champion, "other", ["nut"], ())
    with pytest.raises(
        PromotionError, match=r"class screw of dataset parts: it has a champion, but data/raw/parts has"
    ):
        notes.check(champion, "parts", ["nut"], ())


@pytest.mark.parametrize("verb", ["rename", "retire"])
def test_a_printed_way_is_carried_out_and_the_next_run_goes_on(
    champion: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(promotion, "project", lambda: tmp_path)
    monkeypatch.setattr(promotion, "registry", lambda root, strict: champion)
    with pytest.raises(PromotionError) as error:
        notes.check(champion, "parts", ["wood-screw"], ())
    command = re.search(rf"python -m flows promote ({verb} .*)", str(error.value))
    assert command
    done = CliRunner().invoke(promotion.promote, shlex.split(command[1]))
    assert done.exit_code == 0, done.output
    notes.check(champion, "parts", ["wood-screw"], ())
    name = "pvqae-parts-wood-screw" if verb == "rename" else MODEL
    assert promotions.held(champion, name) == "1"
    assert [entry.kind for entry in champion.promotions(name)] == ["initial"]
    if verb == "rename":
        assert promotions.owner_of(champion, name) == Owner("parts", "wood-screw")
        assert notes.names_of(champion, name, "wood-screw") == ["wood-screw", "screw"]
        assert MODEL not in champion.owners(lineage.OURS)
    else:
        assert "TEXT" in notes.retired(champion, MODEL)
        notes.revive(champion, MODEL)
        assert not notes.retired(champion, MODEL)


def test_a_name_that_is_taken_and_a_retirement_without_a_reason_are_refused(champion: Registry, tmp_path: Path) -> None:
    run = champion.start("pvqae-parts", "nut")
    champion.register("pvqae-parts-nut", run, "models", {}, Owner("parts", "nut"))
    with pytest.raises(PromotionError, match="pvqae-parts-nut is registered already"):
        notes.rename(champion, tmp_path, SCREW, "nut")
    with pytest.raises(PromotionError, match="needs a reason"):
        notes.retire(champion, tmp_path, SCREW, " ")
