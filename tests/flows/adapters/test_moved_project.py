"""A project that is moved keeps its versions; a copy of it has its own, and leaves its original alone."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from flows.adapters.registry import Mlflow, open_registry
from flows.adapters.tracking import own_database
from flows.core import environment
from pvqae.core.errors import ConfigError, PvqaeError


@pytest.fixture
def project(_migrated: Path, tmp_path: Path) -> Path:
    """A project with a run, whose artifact a version points at."""
    home = tmp_path / "old place" / ".pvqae" / "mlflow"
    home.mkdir(parents=True)
    shutil.copyfile(_migrated, home / "mlflow.db")
    (home / f"migrated-{version('mlflow')}").touch()
    registry = opened(tmp_path / "old place")
    run = work(registry, tmp_path, "first")
    registry.register("pvqae-x-part", run, (tmp_path / "old place/.pvqae/mlflow/artifacts/x/first").as_uri(), {})
    return tmp_path / "old place"


def opened(root: Path) -> Mlflow:
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it for the one that was opened last
    registry, _ = open_registry(root, "auto")
    assert isinstance(registry, Mlflow)
    return registry


def work(registry: Mlflow, place: Path, name: str) -> str:
    """Make a run with an artifact."""
    run = registry.start("pvqae-x", name)
    (place / "made").mkdir(exist_ok=True)
    (place / "made" / "what.txt").write_text(name)
    registry.artifact(run, place / "made")
    return run


def first_run(root: Path) -> str:
    with sqlite3.connect(root / ".pvqae" / "mlflow" / "mlflow.db") as database:
        return str(database.execute("select run_uuid from runs where name = 'first'").fetchone()[0])


def addresses(root: Path) -> str:
    with sqlite3.connect(root / ".pvqae" / "mlflow" / "mlflow.db") as database:
        rows = database.execute(
            "select artifact_uri from runs union select source from model_versions "
            "union select artifact_location from experiments where name = 'pvqae-x'"
        )
        return "\n".join(row[0] for row in rows)


def files(root: Path) -> dict[str, bytes]:
    store = root / ".pvqae" / "mlflow" / "artifacts"
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_moved_project_finds_what_it_had_and_writes_where_it_is(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = project.rename(tmp_path / "new place")
    registry = opened(moved)
    assert f"this project was at {project}: 4 addresses of MLflow are those of {moved} now" in capsys.readouterr().err
    found = registry.fetch(first_run(moved), "made", tmp_path / "out")
    assert found
    assert (found / "what.txt").read_text() == "first"
    work(registry, tmp_path, "second")
    assert not project.exists()
    assert project.as_uri() not in addresses(moved)
    opened(moved)
    assert capsys.readouterr().err == ""


def test_a_copy_writes_into_itself_only(project: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    before = files(project)
    work(opened(copy), tmp_path, "second")
    assert files(project) == before
    assert len(files(copy)) == len(before) + 1
    assert project.as_uri() in addresses(project)
    assert project.as_uri() not in addresses(copy)


def test_what_a_copy_once_wrote_into_its_original_comes_back(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    database = copy / ".pvqae" / "mlflow" / "mlflow.db"
    strayed = work(Mlflow(f"sqlite:///{database}"), tmp_path, "strayed")  # as before addresses were looked at
    assert len(files(copy)) == 1
    registry = opened(copy)
    assert "1 folders were copied from there" in capsys.readouterr().err
    found = registry.fetch(strayed, "made", tmp_path / "out")
    assert found
    assert (found / "what.txt").read_text() == "strayed"
    assert len(files(copy)) == 2


def test_other_stores_stay(project: Path, tmp_path: Path) -> None:
    with sqlite3.connect(project / ".pvqae" / "mlflow" / "mlflow.db") as database:
        database.execute("update runs set artifact_uri = 's3://bucket/.pvqae/mlflow/artifacts/x'")
    moved = project.rename(tmp_path / "new place")
    own_database(moved)
    assert "s3://bucket/.pvqae/mlflow/artifacts/x" in addresses(moved)


def test_a_damaged_database_is_named(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path / "new place")
    (moved / ".pvqae" / "mlflow" / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(PvqaeError, match=r"mlflow\.db: its addresses can't be made those of .*new place"):
        own_database(moved)


def test_the_services_of_the_original_are_not_used_by_a_copy(tmp_path: Path) -> None:
    for name in ("original", "copy"):
        file = environment.services_file(tmp_path / name)
        file.parent.mkdir(parents=True)
        key = environment.services_file(tmp_path / "original").with_name("aws-credentials")
        file.write_text(f'{{"AWS_SHARED_CREDENTIALS_FILE": "{key}"}}')
    assert environment.of_services(tmp_path / "original")
    with pytest.raises(ConfigError, match=r"found those of .*original, whose folder was moved or copied here"):
        environment.of_services(tmp_path / "copy")


def test_a_database_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with closing(sqlite3.connect(command[-1].removeprefix("sqlite:///"))) as base:
            base.execute("create table experiments (name text)")
        return subprocess.CompletedProcess(command, 1, "", "database or disk is full")

    with monkeypatch.context() as full:
        full.setattr(subprocess, "run", torn)
        with pytest.raises(PvqaeError, match=r"can't be prepared:\ndatabase or disk is full"):
            own_database(tmp_path)
    assert [path.name for path in (tmp_path / ".pvqae/mlflow").iterdir()] == ["migration.lock"]
    own_database(tmp_path)
    with closing(sqlite3.connect(tmp_path / ".pvqae/mlflow/mlflow.db")) as base:
        assert base.execute("select version_num from alembic_version").fetchone()
