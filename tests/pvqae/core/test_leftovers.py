"""What a killed or failed writer left beside a file goes with the next one; what a living one writes stays. Where
nothing can be written is said before there is anything to write."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from pvqae.core.errors import ConfigError
from pvqae.core.files import make_folder, whole_folder, write_tensors, write_text


def ended() -> int:
    """The pid of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_half_tensors_of_a_killed_process_go_with_the_next_write(tmp_path: Path) -> None:
    dead, living = (tmp_path / f"x.safetensors.{pid}.part" for pid in (ended(), os.getppid()))
    for part in (dead, living):
        part.write_bytes(b"half")
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", living.name]


def test_a_write_that_fails_leaves_nothing_beside(tmp_path: Path) -> None:
    write_text(tmp_path / "note", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "note", "half \ud800")
    with pytest.raises(ValueError):
        write_tensors(tmp_path / "x", {"a": torch.zeros(2).to_sparse()})
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "before"


def test_a_place_that_takes_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, found in (("file", "a file"), ("file/below", "Not a directory"), ("x" * 300, "File name too long")):
        with pytest.raises(ConfigError, match=f"{place}: expected a folder to write to, found: {found}; name another"):
            make_folder(tmp_path / place)
    with pytest.raises(ConfigError, match="a file"), whole_folder(tmp_path / "file"):
        raise AssertionError("nothing is worked on")
    make_folder(tmp_path / "new" / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]
