"""Normals of the gate: which are scored when, and which want a look."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from flows.retrain import gate_normals
from flows.retrain.admission import _doubts
from flows.retrain.ledger import IntakePaths, Label, LabelLog
from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.files import digest
from pvqae.core.layout import Layout
from pvqae.samples import images

PARAMS = config.parse({"data": {"name": "nuts", "source": "folder"}})


@dataclass
class Champions:
    """The score is the mean grey level; `asked` are the files that were scored."""

    present: dict[str, str] = field(default_factory=lambda: {"nut": "3"})
    margin: float = 0.25
    broken: bool = False
    asked: list[str] = field(default_factory=list)

    def version(self, category: str) -> str:
        return self.present.get(category, "")

    def screen(self, category: str, path: Path) -> tuple[float, float]:
        if self.broken:
            raise IntegrityError("the bundle is damaged")
        self.asked.append(path.name)
        return float(images.read(path).mean()), 0.6


def picture(raw: Path, name: str, grey: float) -> Path:
    images.write(raw / name, np.full((16, 16, 3), grey, dtype=np.float32))
    return raw / name


@pytest.fixture
def paths(tmp_path: Path) -> IntakePaths:
    """A class with two arrived normals of the gate, one of them odd, and one without a champion."""
    found = IntakePaths(tmp_path, "nuts")
    raw = Layout(tmp_path, "nuts").raw
    for name, grey in {
        "nut/good/1.png": 0.9,  # to learn from, by its hash
        "arrived/nut/gate/a.png": 0.2,
        "arrived/nut/gate/b.png": 0.8,
        "arrived/nut/defect/dent/c.png": 0.95,
        "bolt/good/1.png": 0.9,
        "arrived/bolt/gate/a.png": 0.9,
    }.items():
        picture(raw, name, grey)
    return found


def test_only_normals_of_the_gate_are_scored_and_what_is_far_above_wants_a_look(paths: IntakePaths) -> None:
    champions = Champions()
    (odd,) = gate_normals.look(paths, PARAMS, champions)
    assert (odd.path, odd.category, odd.version, odd.limit) == ("arrived/nut/gate/b.png", "nut", "3", 0.6)
    assert odd.score == pytest.approx(0.8, abs=0.01)
    assert sorted(champions.asked) == ["a.png", "b.png"]
    (said,) = _doubts([odd], "nuts")
    assert said.startswith("1 normals of the gate score far above what their champions know, arrived/nut/gate/b.png")
    assert "python -m flows review --dataset nuts" in said
    assert _doubts([], "nuts") == ()


def test_nothing_is_scored_twice_but_by_another_champion_or_when_it_changed(paths: IntakePaths) -> None:
    gate_normals.look(paths, PARAMS, Champions())
    again = Champions()
    assert len(gate_normals.look(paths, PARAMS, again)) == 1
    assert again.asked == []
    changed = picture(Layout(paths.root, "nuts").raw, "arrived/nut/gate/a.png", 0.7)
    assert len(gate_normals.look(paths, PARAMS, again)) == 2
    assert again.asked == [changed.name]
    newer = Champions({"nut": "4", "bolt": "1"})
    assert {(one.category, one.version) for one in gate_normals.look(paths, PARAMS, newer)} == {
        *(("nut", "4"), ("bolt", "1"))
    }
    assert {"a.png", "b.png"} <= set(newer.asked)


def test_what_is_gone_or_was_labelled_wants_no_look(paths: IntakePaths) -> None:
    gate_normals.look(paths, PARAMS, Champions())
    file = Layout(paths.root, "nuts").raw / "arrived/nut/gate/b.png"
    LabelLog(paths.labels).append(Label(digest(file), "good", "Ada", "2026-01-02T03:04:05+00:00", "nut", "gate"))
    assert gate_normals.look(paths, PARAMS, Champions()) == []
    assert len(gate_normals.doubtful(paths)) == 1  # the page still knows it, so that the label can be undone
    file.unlink()
    gate_normals.look(paths, PARAMS, Champions())
    assert gate_normals.doubtful(paths) == []


def test_a_champion_that_can_not_score_is_told_of_once(paths: IntakePaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_normals.look(paths, PARAMS, Champions(broken=True)) == []
    assert capsys.readouterr().err.count("nut: the normals of the gate were not looked at: the bundle is damaged") == 1
    assert len(gate_normals.look(paths, PARAMS, Champions())) == 1
