"""A machine is lost: what its project had comes back in a new clone, and from there into servers."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from flows.core import shared_files
from flows.machines import control
from flows.upkeep import backup
from flows.workspace import workspace
from pvqae.core.config import Services
from pvqae.core.errors import ConfigError, IntegrityError
from tests.clones import TINY, Clone, clone
from tests.end_to_end.test_services import Project

MODEL = "pvqae-demo-brick"
SHORT = [word for setting in (*TINY, "train.steps=20", "flow.push=false") for word in ("--set", setting)]
SECRET = "not-for-archives"


def flows(project: Clone, *words: str, expect: int = 0, err: bool = False) -> str:
    """What a command said on its output, or on its error output, which ended with the code `expect`."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *words],
        cwd=project.root,
        env=project.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stderr if err else done.stdout


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the address from the environment that MLflow leaves there once it was opened."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project with a champion, a photograph in review, and secrets where they belong."""
    found = clone(tmp_path_factory.mktemp("plant"))
    flows(found, "train", *SHORT)
    for name in (".dvc/config.local", ".pvqae/services/secrets.json"):
        (found.root / name).parent.mkdir(parents=True, exist_ok=True)
        (found.root / name).write_text(f"# {SECRET}\n")
    labels = found.root / ".pvqae" / "review" / "demo" / "labels.jsonl"
    labels.parent.mkdir(parents=True)
    labels.write_text('{"label": "good"}\n')
    return found


@pytest.fixture(scope="module")
def archive(plant: Clone) -> Path:
    file = plant.root.parent / "plant.tar"
    assert "1 versions of 1 models" in flows(plant, "backup", str(file))
    return file


@pytest.fixture
def other(tmp_path: Path) -> Clone:
    """A new clone on another machine."""
    return clone(tmp_path / "elsewhere")


def state(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if ".git/" not in str(path)}


def test_a_lost_project_comes_back_in_a_new_clone(plant: Clone, archive: Path, other: Clone) -> None:
    flows(other, "restore", str(archive))
    for words in (("promote", "log", "--json"), ("promote", "log", "demo")):
        assert flows(other, *words) == flows(plant, *words)
    labels = ".pvqae/review/demo/labels.jsonl"
    assert (other.root / labels).read_text() == (plant.root / labels).read_text()
    assert "expected a project without versions" in refused(other, archive)


@pytest.mark.integration
def test_it_goes_on_as_if_nothing_had_happened(archive: Path, other: Clone) -> None:
    flows(other, "restore", str(archive))
    assert "reproduced, the rebuilt bundle has the registered hash" in flows(other, "verify", MODEL, "1")
    assert "Stages run: none" in flows(other, "train", *SHORT)


def refused(project: Clone, archive: Path) -> str:
    with pytest.raises(ConfigError) as error:
        backup.read(project.root, str(archive))
    return str(error.value)


def test_no_secret_and_nothing_that_can_be_made_again_is_in_it(archive: Path) -> None:
    with tarfile.open(archive) as found:
        names = found.getnames()
        for member in found:
            file = found.extractfile(member)
            assert file
            assert SECRET.encode() not in file.read(), member.name
    folders = {name.split("/")[1] for name in names if name.startswith(".pvqae/")}
    assert folders == {"mlflow", "review", "runs"}


@pytest.mark.parametrize("where", [0.0, 0.4, 0.8, 1.0])
def test_a_damaged_archive_changes_nothing(archive: Path, other: Clone, tmp_path: Path, where: float) -> None:
    with tarfile.open(archive) as found:
        members = found.getmembers()
    inside = members[int(where * (len(members) - 1))]  # at 1.0 the list of sums itself
    position = inside.offset_data + inside.size // 2
    data = bytearray(archive.read_bytes())
    data[position] ^= 1
    (tmp_path / "damaged.tar").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(archive.read_bytes()[:position])
    before = state(other.root)
    for name in ("damaged.tar", "cut.tar"):
        with pytest.raises(IntegrityError, match=rf"{name}.*copy the archive again, or take another one"):
            backup.read(other.root, str(tmp_path / name))
        assert {name for name in state(other.root) if name != ".pvqae"} == before


def test_what_was_killed_goes_on(archive: Path, other: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    put, done = backup._put, []

    def killed(source: Path, target: Path, keep: bool) -> None:
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append(target)
        put(source, target, keep)

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            backup.read(other.root, str(archive))
    assert backup.read(other.root, str(archive)).champions == {MODEL: "1"}
    assert MODEL in flows(other, "promote", "log")


def test_nothing_is_written_while_a_flow_works(plant: Clone, tmp_path: Path) -> None:
    with (
        shared_files.held(workspace.lock_file(plant.root, "demo")),
        pytest.raises(ConfigError, match="a flow works on demo"),
    ):
        backup.write(plant.root, str(tmp_path / "busy.tar"))
    assert not (tmp_path / "busy.tar").exists()


def test_changed_settings_are_not_written_over(archive: Path, other: Clone) -> None:
    with (other.root / "params.yaml").open("a") as file:
        file.write("# mine\n")
    assert "expected committed settings, found changed ones" in refused(other, archive)


@pytest.mark.integration
def test_versions_from_before_come_into_servers_and_back(archive: Path, other: Clone, tmp_path: Path) -> None:
    flows(other, "restore", str(archive))
    services = Project(other, control.on_free_ports(Services()))
    log = flows(other, "promote", "log", "--json")
    try:
        up = services.up()
        assert "services take-over" in up.stdout, up.stdout + up.stderr
        assert "of the project's own registry are in that of the services" in flows(other, "services", "take-over")
        assert flows(other, "promote", "log", "--json") == log
        assert "reproduced" in flows(other, "verify", MODEL, "1")
        assert "2 challenger (new)" in flows(other, "train", *SHORT, "--set", "score.top=0.05")
        served = mlflow.MlflowClient(f"http://127.0.0.1:{services.settings.mlflow_port}")
        assert {found.version for found in served.search_model_versions(f"name = '{MODEL}'")} == {"1", "2"}
        with pytest.raises(control.ServiceError, match="two registries can't be joined"):
            control.take_over(other.root)
        flows(other, "backup", "s3://mlflow/kept/plant.tar")
        flows(other, "backup", str(tmp_path / "served.tar"))
    finally:
        control.down(other.root, services.settings)
    third = clone(tmp_path / "third")
    flows(third, "restore", str(tmp_path / "served.tar"))
    assert "reproduced" in flows(third, "verify", MODEL, "2")
