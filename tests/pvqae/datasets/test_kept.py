"""Facts kept by hash: what was seen is not decoded again, and a damaged cache costs speed, never truth."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pvqae.datasets import inspection
from pvqae.datasets.inspection import Facts
from pvqae.samples import images

PATHS = [Path("a.png"), Path("b.png")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, path in enumerate(PATHS):
        images.write(tmp_path / path, np.random.default_rng(number).random((20, 30), dtype=np.float32), channels=1)
    return tmp_path


def seen(root: Path) -> list[Facts | str]:
    return list(inspection.inspect_all(PATHS, root, root / "facts.sqlite"))


def test_what_was_seen_is_not_decoded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seen(root)
    assert all(isinstance(facts, Facts) for facts in first)
    decoded: list[Path] = []
    inspect = inspection.inspect
    monkeypatch.setattr(inspection, "inspect", lambda path, *rest: decoded.append(path) or inspect(path, *rest))
    assert seen(root) == first
    assert not decoded
    images.write(root / "b.png", np.zeros((20, 30), np.float32), channels=1)
    again = seen(root)
    assert decoded == [Path("b.png")]
    assert again[0] == first[0]
    assert again[1] != first[1]


@pytest.mark.parametrize("damage", ["forged", "no database", "a folder"])
def test_a_damaged_cache_costs_speed_only(root: Path, damage: str) -> None:
    first, file = seen(root), root / "facts.sqlite"
    if damage == "forged":
        with sqlite3.connect(file) as base:
            base.execute("UPDATE facts SET facts = replace(facts, '20', '21')")
        base.close()
    else:
        file.unlink()
        file.write_bytes(b"x" * 5000) if damage == "no database" else file.mkdir()
    assert seen(root) == first


def test_an_unreadable_image_is_never_known(root: Path) -> None:
    (root / "a.png").write_bytes(b"x")
    assert [isinstance(found, str) for found in seen(root) + seen(root)] == [True, False] * 2


def test_other_code_has_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inspection.file(tmp_path)
    assert before == inspection.file(tmp_path)
    for name in inspection._DECODING:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("changed")
    monkeypatch.setattr(inspection, "_PACKAGE", tmp_path)
    assert inspection.file(tmp_path) != before
