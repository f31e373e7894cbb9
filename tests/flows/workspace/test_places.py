"""The project in repositories, and with DVC's settings, that are other people's: what `train` can do there, all can."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.adapters import dvc_files, git
from flows.adapters.versioning import Dvc
from flows.core.processes import Supervisor
from flows.machines import job as jobs
from flows.machines.fan_out import JobSpec
from flows.upkeep import gc
from flows.versions import verify
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.layout import Layout
from pvqae.datasets import arrivals
from tests.flows.conftest import commit, run
from tests.flows.workspace.test_workspace import choice

CLONE = ("git", "-c", "protocol.file.allow=always")


def subfolder(project: Path, base: Path) -> Path:
    """A folder of a larger repository, which has files of the same names and a tag that is no commit."""
    top = base / "mono"
    shutil.copytree(project, top / "ml" / "inspect", ignore=shutil.ignore_patterns(".git"))
    (top / "dvc.yaml").write_text("another's")
    run(top, "git", "init", "-q")
    commit(top)
    run(top, "git", "tag", "blob", "HEAD:dvc.yaml")
    return top / "ml" / "inspect"


def submodule(project: Path, base: Path) -> Path:
    (base / "plant").mkdir()
    run(base / "plant", "git", "init", "-q")
    run(base / "plant", *CLONE, "submodule", "--quiet", "add", str(project), "vision")
    return base / "plant" / "vision"


def linked(project: Path, base: Path) -> Path:
    run(project, "git", "worktree", "add", "-q", "-b", "trial", str(base / "linked work tree"))
    return base / "linked work tree"


def detached(project: Path, base: Path) -> Path:
    run(project, "git", "checkout", "-q", "--detach")
    return project


def shallow(project: Path, base: Path) -> Path:
    commit(project)
    run(base, "git", "clone", "-q", "--depth", "1", f"file://{project}", "shallow")
    return base / "shallow"


def partial(project: Path, base: Path) -> Path:
    """Blobs come when they are asked for; only some folders are checked out."""
    run(project, "git", "config", "uploadpack.allowFilter", "true")
    run(base, "git", "clone", "-q", "--filter=blob:none", "--sparse", f"file://{project}", "partial")
    run(base / "partial", "git", "sparse-checkout", "set", "pvqae", "flows", ".dvc")
    return base / "partial"


def hooked(project: Path, base: Path) -> Path:
    """Every hook refuses, commits want a signature that nobody can give."""
    for name in ("pre-commit", "post-checkout", "reference-transaction", "post-index-change"):
        hook = project / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
    for setting, value in (("commit.gpgsign", "true"), ("gpg.program", "/bin/false"), ("core.fsmonitor", "/bin/false")):
        run(project, "git", "config", setting, value)
    return project


def from_a_hook(project: Path, base: Path) -> Path:
    """Git's own environment of a hook of another repository; the fixture puts the former one back."""
    (base / "other").mkdir()
    run(base / "other", "git", "init", "-q")
    git_dir = base / "other" / ".git"
    os.environ |= {"GIT_DIR": str(git_dir), "GIT_INDEX_FILE": str(git_dir / "index"), "GIT_WORK_TREE": str(base)}
    os.environ |= {"GIT_OBJECT_DIRECTORY": str(git_dir / "objects"), "GIT_COMMON_DIR": str(git_dir)}
    return project


def moved(project: Path, base: Path) -> Path:
    """The project and the workspace in it were used elsewhere before, by an earlier version as a linked work tree."""
    space = project / ".pvqae" / "runs" / "parts"
    run(project, "git", "worktree", "add", "-q", "--detach", str(space))
    return project.rename(base / "elsewhere")


PLACES: tuple[Callable[[Path, Path], Path], ...] = (
    *(subfolder, submodule, linked, detached, shallow, partial, hooked, from_a_hook, moved),
)


def _long(*values: object) -> object:
    """Return a parameter of `make integration`: DVC takes seconds for each, and one of a kind is enough every time."""
    return pytest.param(*values, marks=pytest.mark.integration)


@pytest.fixture(params=PLACES, ids=lambda place: place.__name__)
def place(request: pytest.FixtureRequest, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    base = tmp_path / "base"
    base.mkdir()
    found: Path = request.param(project, base)
    return found


def test_what_each_command_does_with_git(place: Path, tmp_path: Path) -> None:
    """Clean code, a workspace, a commit of the data, a clone to verify, a job, and what gc keeps."""
    code = git.code(place)
    assert code.sha
    assert code.uncommitted == ()
    space = workspace.prepare(place, choice(steps=7))
    assert (space.path / "dvc.yaml").read_bytes() == (place / "dvc.yaml").read_bytes()
    assert (space.path / "pvqae" / "a.py").exists()

    params, needed = place / ".pvqae" / "params.yaml", "0" * 31 + "1"
    params.write_text(config.dump(choice().params))
    lock = place / ".pvqae" / "lock"
    lock.write_text(json.dumps({"stages": {"a": {"outs": [{"md5": needed}]}}}))
    data = git.record(place, {"parts/params.yaml": params, "parts/dvc.lock": lock}, "a version\n")
    assert git.files_of(place, data) == ["parts/dvc.lock", "parts/params.yaml"]

    tags = {"git_sha": code.sha, "data_sha": data}
    assert verify._clone(place, tmp_path / "clone", "pvqae-parts-part", tags) == "parts"
    assert (tmp_path / "clone" / "dvc.yaml").read_text() == (place / "dvc.yaml").read_text()
    assert (tmp_path / "clone" / "params.yaml").read_text() == params.read_text()

    job = jobs._prepare(place, JobSpec("parts", code.sha, (), {"params.yaml": params.read_text()}, {}))
    assert (job / "flows" / "b.py").read_text() == "b = 1\n"

    for name in (needed, "0" * 31 + "2"):
        file = place / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    gone = gc.unneeded(place, {data}, lambda paths: list(paths))
    assert [path.name for path in gone] == ["0" * 29 + "2"]


@pytest.mark.parametrize("place", [subfolder, _long(submodule), _long(linked), _long(from_a_hook)], indirect=True)
def test_dvc_works_in_the_project_and_in_its_workspace(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "1.png").write_text("one")
    with Supervisor() as supervisor:
        own = Dvc(place, supervisor)
        assert own.add_dataset("parts", source)
        space = workspace.prepare(place, choice())
        assert space.bring_dvc_file()
        there = Dvc(space.path, supervisor)
        there.checkout("parts")
        assert there.repro("manifest") == "ran"
        assert (space.layout.raw / "1.png").read_text() == "one"
        own.push()


def test_before_the_first_commit_nothing_that_needs_none_fails(project: Path) -> None:
    shutil.rmtree(project / ".git")
    run(project, "git", "init", "-q")
    file = project / ".dvc" / "cache" / "files" / "md5" / "ab" / "c"
    file.parent.mkdir(parents=True)
    file.touch()
    assert gc.unneeded(project, (), lambda paths: list(paths)) == [file]
    assert git.record(project, {"parts/params.yaml": project / "params.yaml"}, "m")


def test_a_commit_that_is_elsewhere_is_brought_from_a_shallow_clone_s_remote(project: Path, tmp_path: Path) -> None:
    first = commit(project)
    git.record(project, {"parts/params.yaml": project / "params.yaml"}, "m")
    data = git.commit_of(project, git.BRANCH)
    commit(project)
    run(tmp_path, "git", "clone", "-q", "--depth", "1", f"file://{project}", "shallow")
    for sha in (first, data):
        assert not git.commit_of(tmp_path / "shallow", sha)
        assert git.needed(tmp_path / "shallow", sha, "of a test") == sha


# -- DVC's settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write DVC's settings of a level, the user's or the system's."""

    def write(level: str, text: str) -> None:
        folder = tmp_path / level
        folder.mkdir()
        (folder / "config").write_text(text)
        monkeypatch.setenv(f"DVC_{level.upper()}_CONFIG_DIR", str(folder))

    return write


@pytest.mark.parametrize(
    ("level", "text"),
    [
        _long("global", "[cache]\n    dir = shared\n"),
        _long("system", "[cache]\n    dir = shared\n    shared = group\n    type = symlink\n"),
        ("global", "[core]\n    hardlink_lock = true\n    autostage = true\n[cache]\n    dir = shared\n"),
    ],
)
def test_a_cache_of_the_users_settings_serves_project_workspace_and_clone(
    project: Path, tmp_path: Path, settings: Callable[[str, str], None], level: str, text: str
) -> None:
    settings(level, text)
    source = tmp_path / "source"
    source.mkdir()
    (source / "1.png").write_text("one")
    with Supervisor() as supervisor:
        own = Dvc(project, supervisor)
        own.add_dataset("parts", source)
        space = workspace.prepare(project, choice())
        assert dvc_files.cache(space.path) == dvc_files.cache(project) == tmp_path / level / "shared"
        space.bring_dvc_file()
        there = Dvc(space.path, supervisor)
        there.checkout("parts")
        assert there.repro("manifest") == "ran"
        assert there.listing(own.data_hash("parts")) == {"1.png"}
    assert not (project / ".dvc" / "cache").exists()
    assert gc._shared_cache(project) == tmp_path / level / "shared"


def test_local_settings_come_first_and_their_paths_hold_in_a_workspace(
    project: Path, tmp_path: Path, settings: Callable[[str, str], None]
) -> None:
    settings("global", "[core]\n    remote = far\n['remote \"far\"']\n    url = away\n[cache]\n    dir = shared\n")
    (project / ".dvc" / "config").write_text("['remote \"s\"']\n    url = ssh://x/y\n    keyfile = ../key\n")
    (project / ".dvc" / "config.local").write_text("[cache]\n    dir = ../own cache\n    type = 'hardlink,copy'\n")
    dvc_files.share(project, workspace.prepare(project, choice()).path)
    found = dvc_files._effective(project / ".pvqae" / "runs" / "parts")
    assert found["cache"] == {"dir": str(project / "own cache"), "type": "hardlink,copy"}
    assert found["remote"]["s"] == {"url": "ssh://x/y", "keyfile": str(project / "key")}
    assert dvc_files.default_remote(project) == {"url": str(tmp_path / "global" / "away")}
    assert gc._shared_cache(project) is None


@pytest.mark.parametrize("link", ["symlink", _long("hardlink"), _long("copy")])
def test_nothing_writes_through_a_link_into_the_cache(project: Path, tmp_path: Path, link: str) -> None:
    (project / ".dvc" / "config.local").write_text(f"[cache]\n    type = {link}\n")
    source, raw = tmp_path / "source", Layout(project, "parts").raw
    (source / "good").mkdir(parents=True)
    (source / "good" / "1.png").write_text("one")
    with Supervisor() as supervisor:
        dvc = Dvc(project, supervisor)
        dvc.add_dataset("parts", source)
        for who in "ab":
            rows = [dict.fromkeys(arrivals._SIGNED, who) | {"path": "arrived/x.png"}]
            arrivals.sign(raw, rows)
            left = arrivals._labels_file(raw)
            left.with_name(left.name + ".part").write_text(who) if who == "a" else None
            dvc.version_dataset("parts")
            dvc.checkout("parts")  # links, as the settings want them
        (source / "good" / "1.png").write_text("another")
        dvc.add_dataset("parts", source)
    objects = [path for path in (project / ".dvc" / "cache" / "files" / "md5").glob("??/*") if path.suffix != ".dir"]
    assert len(objects) >= 4
    for path in objects:
        assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name
