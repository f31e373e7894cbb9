"""What an error tells a person to do about git, DVC, a workspace or a setting is done, and the fault is gone.

A row is a fault: how it is made, what meets it, which part of the text is the repair; `do` types it into a shell.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.adapters import dvc_files, git
from flows.adapters.fakes import FakeProbe
from flows.adapters.versioning import Dvc
from flows.core import classes, environment
from flows.core.processes import Supervisor
from flows.upkeep import doctor
from flows.workspace import workspace
from pvqae.cli import diagnosis
from pvqae.cli.diagnosis import _git as repository_check
from pvqae.core import config, files
from pvqae.core.errors import ConfigError, PvqaeError
from pvqae.core.layout import Layout
from tests.flows.conftest import commit, run


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def do(root: Path, command: str, **fill: object) -> None:
    """Type a printed command; capitals in it, as PLACE, stand for what only the person knows."""
    for name, value in fill.items():
        command = re.sub(rf"\b{name}\b", str(value), command)
    if added := re.fullmatch(r"python -m flows data add (\S+) (\S+) --source (\S+)", command):
        workspace.add_dataset(root, added[1], Path(added[2]), added[3])
        return
    who = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environ = environment.for_stages(root) | who
    done = subprocess.run(command, shell=True, cwd=root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)


def after(text: str) -> Callable[[str], str]:
    """The rest of the line after `text`, without a closing bracket's explanation."""
    return lambda said: said.partition(text)[2].splitlines()[0].partition(" (PLACE")[0].split(", or ")[0]


def asked(root: Path, check: Callable[[Path], object]) -> str:
    """What an error or a check of the doctor says, "" where all is well."""
    try:
        found = check(root)
    except PvqaeError as error:
        return str(error)
    checks = found if isinstance(found, list) else [found]
    wrong = [item for item in checks if getattr(item, "state", "ok") == "bad" or getattr(item, "repair", "")]
    return "\n".join(f"{item.found} → {item.repair}" for item in wrong)


# -- faults: each changes the project and returns what the repair's capitals stand for


def unborn(root: Path) -> dict[str, object]:
    shutil.rmtree(root / ".git")
    run(root, "git", "init", "-q")
    return {}


def no_repository(root: Path) -> dict[str, object]:
    shutil.rmtree(root / ".git")
    return {}


def moved_main(root: Path) -> dict[str, object]:
    """The project is a linked work tree of a repository that was moved."""
    main = root.with_name("main")
    root.rename(main)
    run(main, "git", "worktree", "add", "-q", str(root), "-b", "trial")
    main.rename(root.with_name("moved main"))
    return {"PLACE": "'" + str(root.with_name("moved main") / ".git") + "'"}


def moved_git(root: Path) -> dict[str, object]:
    (root / ".git").rename(root.with_name("elsewhere.git"))
    write(root / ".git", f"gitdir: {root.with_name('gone.git')}\n")
    return {"PLACE": root.with_name("elsewhere.git")}


def of_another_user(root: Path) -> dict[str, object]:
    if os.geteuid():
        pytest.skip("only root gives files away")
    for path in (root, *root.rglob("*")):
        os.chown(path, 1234, 1234)
    return {}


def changed_code(root: Path) -> dict[str, object]:
    write(root / "flows" / "a new file.py", "")
    write(root.parent / "other.txt", "")
    return {}


def no_dvc(root: Path) -> dict[str, object]:
    shutil.rmtree(root / ".dvc")
    return {}


def no_dvc_in_a_subfolder(root: Path) -> dict[str, object]:
    shutil.rmtree(root / ".dvc")
    (root / ".git").rename(root.parent / ".git")
    return {}


def no_remote(root: Path) -> dict[str, object]:
    write(root / ".dvc" / "config", "")
    return {"NAME": "store", "URL": root.parent / "store"}


def bad_params(root: Path) -> dict[str, object]:
    write(root / "params.yaml", "seeed: 1\n")
    return {}


def images(root: Path) -> Path:
    return write(root.parent / "photos" / "good" / "1.png", "one").parents[1]


def added(root: Path) -> None:
    with Supervisor() as supervisor:
        Dvc(root, supervisor).add_dataset("parts", images(root))


def conflict(root: Path) -> dict[str, object]:
    added(root)
    run(root, "git", "add", "data/raw/parts.dvc")
    sha = commit(root)
    file = root / "data" / "raw" / "parts.dvc"
    file.write_text(file.read_text().replace("- md5", "<<<<<<< HEAD\n- md5"))
    return {"COMMIT": sha}


def cut_without_images(root: Path) -> dict[str, object]:
    added(root)
    run(root, "git", "add", "data/raw/parts.dvc")
    sha = commit(root)
    shutil.rmtree(root / "data" / "raw" / "parts")
    write(root / "data" / "raw" / "parts.dvc", "outs:\n")
    return {"COMMIT": sha}


def lock_conflict(root: Path) -> dict[str, object]:
    write(root / "dvc.lock", "schema: '2.0'\nstages:\n<<<<<<< HEAD\n  a:\n    cmd: x\n=======\n>>>>>>> other\n")
    return {}


def classes_conflict(root: Path) -> dict[str, object]:
    write(root / "data" / "classes.yaml", "<<<<<<< HEAD\ndataset: demo\n=======\ndataset: parts\n>>>>>>> other\n")
    return {}


def hidden(root: Path) -> dict[str, object]:
    write(root / ".gitignore", "/data/raw/*\n!/data/raw/*.dvc\n")
    return {}


def damaged_settings(root: Path) -> dict[str, object]:
    write(root / ".dvc" / "config.local", "[core\n")
    return {}


def not_here(root: Path) -> dict[str, object]:
    return {"FOLDER": images(root)}


def raw_gone(root: Path) -> dict[str, object]:
    added(root)
    shutil.rmtree(root / "data" / "raw" / "parts")
    return {}


def damaged_bundle(root: Path) -> dict[str, object]:
    folder = root / "models" / "demo" / "brick" / "bundle"
    write(folder / "config.json", "{}")
    files.seal_folder(folder)
    write(root / ".gitignore", "")
    run(root, "dvc", "add", "-q", "models/demo/brick/bundle")
    (folder / "config.json").unlink()
    write(folder / "config.json", "{ }")
    return {}


def elsewhere(root: Path) -> dict[str, object]:
    """The commit is in another clone only."""
    run(root.parent, "git", "clone", "-q", str(root), "clone")
    write(root / "sha", commit(root.parent / "clone"))
    return {"cwd": root.parent / "clone"}


def elsewhere_with_a_remote(root: Path) -> dict[str, object]:
    run(root.parent, "git", "clone", "-q", "--bare", str(root), "hub.git")
    run(root, "git", "remote", "add", "hub", str(root.parent / "hub.git"))
    return elsewhere(root)


# -- what meets them


def with_dvc(act: Callable[[Dvc], object]) -> Callable[[Path], object]:
    def meets(root: Path) -> object:
        with Supervisor() as supervisor:
            return act(Dvc(root, supervisor))

    return meets


PARTS = workspace.Choice(config.parse({"data": {"name": "parts", "source": "folder"}}), False)


def remote(root: Path) -> object:
    return [found for found in [doctor._remote(root, FakeProbe())] if found.state == "bad"]


def needed(root: Path) -> object:
    return git.needed(root, (root / "sha").read_text(), "of a test")


def in_brackets(said: str) -> str:
    return said.split("(")[-1].split(")")[0]


@dataclass(frozen=True)
class Row:
    fault: Callable[[Path], dict[str, object]]
    meets: Callable[[Path], object]
    repair: Callable[[str], str]


data_hash = with_dvc(lambda dvc: dvc.data_hash("parts"))
ROWS = [
    Row(unborn, repository_check, after("→ ")),
    Row(unborn, lambda root: workspace.prepare(root, PARTS), after("run: ")),
    Row(no_repository, repository_check, after("→ ")),
    Row(moved_main, repository_check, after("→ ")),
    Row(moved_git, repository_check, after("→ ")),
    Row(of_another_user, repository_check, after("→ ")),
    Row(of_another_user, git.code, after("call:\n\n\t")),
    Row(changed_code, doctor._code, after("→ ")),
    Row(no_dvc, remote, after("→ ")),
    Row(no_dvc_in_a_subfolder, remote, after("→ ")),
    Row(no_remote, lambda root: doctor._remote(root, FakeProbe()), after("→ ")),
    Row(bad_params, lambda root: diagnosis.read_params(root)[0], after("state: ")),
    Row(conflict, data_hash, after("e.g. ")),
    Row(conflict, data_hash, after("becomes a version: ")),
    Row(cut_without_images, data_hash, after("e.g. ")),
    Row(lock_conflict, with_dvc(lambda dvc: dvc.status()), in_brackets),
    Row(lock_conflict, dvc_files.mend, in_brackets),
    Row(
        classes_conflict, lambda root: classes.write(root / "data" / "classes.yaml", {"dataset": "x"}), after("again: ")
    ),
    Row(hidden, added, lambda said: "sed -i 's,^/data/raw/.$,/data/raw/?*,' .gitignore"),
    Row(damaged_settings, dvc_files._effective, lambda said: f"rm '{said.partition(':')[0]}'"),
    Row(not_here, lambda root: classes.wanted(PARTS.params, root / "data" / "raw" / "parts"), after("source=folder; ")),
    Row(raw_gone, lambda root: diagnosis._datasets(Layout(root, "parts"), "folder"), after("→ ")),
    Row(damaged_bundle, diagnosis._bundles, after("→ ")),
    Row(elsewhere, needed, after("run: ")),
    Row(elsewhere_with_a_remote, needed, after("run: ")),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault.__name__)
def test_the_repair_that_is_printed_repairs(
    project: Path, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where git and DVC keep a user's settings
    place = project.rename(project.with_name("a project"))  # a blank in its path
    fill = row.fault(place)
    said = asked(place, row.meets)
    assert said, "no fault"
    do(Path(str(fill.pop("cwd", place))), row.repair(said), **fill)
    assert asked(place, row.meets) == ""


@pytest.mark.parametrize(
    ("override", "repair"),
    [("train.stepz=3", r"did you mean (\S+)\?"), ("train.steps", r"e\.g\. (\S+)"), ("seed.x=1", r"give --set (\S+)")],
)
def test_an_override_that_is_none_is_repaired_by_what_is_named(project: Path, override: str, repair: str) -> None:
    file = project / "params.yaml"
    with pytest.raises(ConfigError) as error:
        config.load(file, (override,))
    named = re.search(repair, str(error.value))
    assert named
    config.load(file, (named[1].replace("VALUE", "3") if "=" in named[1] else f"{named[1]}=3",))
