"""Every package that is installed has one exact version, and no file has been merged by halves."""

import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]


def test_every_dependency_has_one_exact_version() -> None:
    pins = [Requirement(line) for line in (PROJECT / "constraints.txt").read_text("utf-8").splitlines()]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    assert len(names) == len(set(names))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for some in project["optional-dependencies"].values() for one in some)]
    unpinned = {canonicalize_name(Requirement(one).name) for one in wanted} - set(names) - {"pvqae"}
    assert not unpinned


def test_no_tracked_file_is_merged_by_halves() -> None:
    found = subprocess.run(
        ["git", "grep", "-nE", "^(<{7} |={7}$|>{7} )"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert found.returncode in (1, 128), found.stdout  # 128: not a repository, as where CI has copied the files
