"""Where a run works: the project itself, or a checkout that has its code but none of its files to lose."""

import os
import stat
import sys
from pathlib import Path

import pytest

from flows.adapters import git
from flows.adapters.versioning import Dvc
from flows.core.processes import Supervisor
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError


def choice(own: bool = False, **train: int) -> workspace.Choice:
    params = config.parse({"data": {"name": "parts", "source": "folder", "root": "/secret"}, "train": train})
    return workspace.Choice(params, own)


def test_own_params_work_in_the_project_itself(project: Path) -> None:
    space = workspace.prepare(project, choice(own=True))
    assert space.path == project
    assert not (project / ".pvqae").exists()


def test_other_params_work_in_a_workspace_and_the_project_is_not_touched(project: Path) -> None:
    (project / "pvqae" / "a.py").write_text("a = 2\n")
    (project / "flows" / "new.py").write_text("new\n")
    before = git.git(project, "status", "--porcelain"), (project / "params.yaml").read_bytes()
    space = workspace.prepare(project, choice(steps=7))
    assert (git.git(project, "status", "--porcelain"), (project / "params.yaml").read_bytes()) == before
    assert space.path == project / ".pvqae" / "runs" / "parts"
    assert (space.path / "pvqae" / "a.py").read_text() == "a = 2\n"
    assert (space.path / "flows" / "new.py").exists()
    assert config.load(space.path / "params.yaml").train.steps == 7
    assert "/secret" not in (space.path / "params.yaml").read_text()


def test_a_workspace_follows_the_code_and_keeps_what_it_made(project: Path) -> None:
    space = workspace.prepare(project, choice())
    (space.path / "dvc.lock").write_text("made here")
    (project / "flows" / "b.py").rename(project / "flows" / "c.py")
    git.git(project, "add", "-A")
    git.git(project, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "moved")
    workspace.prepare(project, choice())
    assert sorted(path.name for path in (space.path / "flows").iterdir()) == ["c.py"]
    assert (space.path / "dvc.lock").read_text() == "made here"
    assert "flows/c.py" in git.code_files(space.path)


def test_a_workspace_that_was_deleted_by_hand_is_made_again(project: Path) -> None:
    import shutil

    space = workspace.prepare(project, choice())
    shutil.rmtree(project / ".pvqae")
    workspace.prepare(project, choice())
    assert (space.path / "pvqae" / "a.py").exists()


def test_project_and_workspace_share_data_cache_and_remote(project: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "1.png").write_text("one")
    with Supervisor() as supervisor:
        Dvc(project, supervisor).add_dataset("parts", source)
        space = workspace.prepare(project, choice())
        own = Dvc(space.path, supervisor)
        assert space.bring_dvc_file()
        own.checkout("parts")
        assert (space.layout.raw / "1.png").read_text() == "one"
        assert not space.bring_dvc_file()
        own.push()
        assert own.data_hash("parts") == Dvc(project, supervisor).data_hash("parts")
    assert [path for path in (project / ".pvqae" / "remote").rglob("*") if path.is_file()]
    assert not (space.path / ".dvc" / "cache").exists()


def test_reports_are_replaced_whole_and_may_be_changed_by_people(project: Path) -> None:
    space = Workspace(project, project / "other", choice().params)
    target = project / "reports" / "parts"
    for folder, name in ((space.layout.reports, "new.html"), (target, "old.html")):
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
    (space.layout.reports / "new.html").chmod(stat.S_IRUSR)
    assert space.publish_reports() == target
    assert [path.name for path in target.iterdir()] == ["new.html"]
    assert (target / "new.html").stat().st_mode & stat.S_IWUSR


def test_published_reports_name_tables_where_they_are(project: Path) -> None:
    space = Workspace(project, project / ".pvqae" / "runs" / "parts", choice().params)
    docs = space.layout.reports / "data_docs" / "index.html"
    docs.parent.mkdir(parents=True)
    docs.write_text("3 files were left out, for the reasons in data/quarantine.csv")
    space.layout.quarantine.parent.mkdir(parents=True)
    space.layout.quarantine.write_text("path,reason\n")
    said = (space.publish_reports() / "data_docs" / "index.html").read_text()
    assert (project / said.split()[-1]).is_file()
    assert Workspace(project, project, choice().params).placed("data/quarantine.csv") == "data/quarantine.csv"


def test_without_a_commit_the_error_says_what_to_do(tmp_path: Path) -> None:
    git.git(tmp_path, "init", "-q")
    with pytest.raises(ConfigError, match="git commit"):
        workspace.prepare(tmp_path, choice())


def test_stage_commands_take_this_interpreter_and_the_workspaces_code(tmp_path: Path) -> None:
    from flows.core import environment

    environ = environment.for_stages(tmp_path)
    assert environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    (tmp_path / environment.COMMANDS).mkdir(parents=True)
    own, other, *_ = environment.for_stages(tmp_path)["PATH"].split(os.pathsep)
    assert (own, other) == (str(tmp_path / environment.COMMANDS), str(Path(sys.executable).parent))
    assert environ["PYTHONPATH"] == str(tmp_path)


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    from flows.core import environment

    environ = {"PREFECT_HOME": str(tmp_path / "own")}
    environment.prepare(tmp_path, environ)
    assert environ["PREFECT_HOME"] == str(tmp_path / "own")
    assert environ["DO_NOT_TRACK"] == "true"
    empty: dict[str, str] = {}
    environment.prepare(tmp_path, empty)
    assert Path(empty["PREFECT_HOME"]).is_dir()
    assert Path(empty["PREFECT_HOME"]).is_relative_to(tmp_path / ".pvqae")
