"""Bringing a dataset in says what is in it, and stops before anything is copied where files belong to nothing."""

import re
from pathlib import Path

import pytest

from flows.adapters.versioning import Dvc
from flows.workspace import workspace
from pvqae.core.errors import DataError
from tests.pvqae.datasets.test_sources import touch


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text("data: {name: nuts, source: folder}\n")
    (root / "data").mkdir()

    def added(self: Dvc, name: str, source: Path, link: str) -> bool:
        (root / "data/raw").mkdir()
        (root / "data/raw" / name).symlink_to(source)
        return True

    monkeypatch.setattr(Dvc, "add_dataset", added)
    monkeypatch.setattr(Dvc, "data_hash", lambda self, name: "abc.dir")
    return root


def test_what_is_used_and_what_is_not_is_printed(project: Path, tmp_path: Path) -> None:
    source = touch(tmp_path / "photos", "nut/good/a.png", "nut/good/day2/b.png", "nut/good/c.heic", "nut/notes.txt")
    said = workspace.add_dataset(project, "nuts", source)
    assert "Images of nut/good/day2/ (1), nut/good/ (1)" in said
    assert "Not looked at: 1 image, 1 other" in said
    assert re.search(r"warning: 1 image not looked at .*: nut/good/c\.heic", said)


def test_a_layout_that_nobody_named_is_not_looked_at(project: Path, tmp_path: Path) -> None:
    said = workspace.add_dataset(project, "others", touch(tmp_path / "photos", "a/b/c.png"))
    assert "looked at" not in said


def test_masks_that_belong_to_nothing_stop_it_before_the_copy(project: Path, tmp_path: Path) -> None:
    source = touch(tmp_path / "photos", "nut/good/a.png", "nut/bent/b.png", "nut/masks/bent/x.png")
    with pytest.raises(DataError, match="belong to no image"):
        workspace.add_dataset(project, "nuts", source)
    assert not (project / "data/raw").exists()
    (source / "nut/masks/bent/x.png").rename(source / "nut/masks/bent/b.png")
    assert "Not looked at: nothing" in workspace.add_dataset(project, "nuts", source)
