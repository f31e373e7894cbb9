"""Clean-up removes what nothing refers to; whatever a version, alias, log or running flow needs stays."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.adapters import git
from flows.adapters.fakes import FakeRegistry
from flows.cli import main
from flows.core import shared_files
from flows.upkeep import gc
from pvqae.core.errors import PvqaeError
from pvqae.datasets import inspection
from tests.flows.conftest import commit

OLD = time.time() - 30 * gc._DAY


def write(path: Path, text: str = "x", old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if old:
        for place in (path, *path.parents[:4]):
            os.utime(place, (OLD, OLD))
    return path


def cached(root: Path, number: int, contents: tuple[int, ...] = (), old: bool = True) -> str:
    """An object of DVC's cache, a folder's listing where it has `contents`; its hash."""
    name = f"{number:032x}" + (".dir" if contents else "")
    rows = json.dumps([{"md5": f"{item:032x}", "relpath": str(item)} for item in contents])
    write(root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:], rows if contents else "x", old)
    return name


def objects(root: Path) -> set[int]:
    files = (root / ".dvc" / "cache" / "files" / "md5").glob("??/*")
    return {int(path.parent.name + path.name[:30], 16) for path in files}


def lock(*hashes: str) -> str:
    outs = [{"path": "models/a", "md5": name} for name in hashes]
    return yaml.safe_dump({"schema": "2.0", "stages": {"train@a": {"cmd": "x", "outs": outs}}})


def collect(root: Path, registry: FakeRegistry, confirm: Callable[[gc.Plan], bool] = lambda plan: True) -> gc.Plan:
    return gc.collect(root, registry, 14, confirm)[0]


@pytest.fixture
def many(project: Path) -> Path:
    """A project with old and new leftovers and with what must stay."""
    home = project / ".pvqae"
    for old in (True, False):
        name = "old" if old else "new"
        write(home / "work" / "demo" / "network-a" / name / "full" / "checkpoint.safetensors", old=old)
        write(home / "cache" / "features" / "ab" / f"{name}.safetensors", old=old)
        write(home / "bundles" / f"pvqae-demo-a-{1 if old else 2}" / "config.json", old=old)
        write(project / "models" / "demo" / "a" / f".{name}.part" / "weights", old=old)
    for name in ("arrivals/demo/ledger.jsonl", "review/demo/labels.jsonl", "mlflow/mlflow.db", "remote/files/md5/ab/c"):
        write(home / name)
    write(project / "scores" / "a" / "b" / "scores.jsonl.part")
    write(project / "data" / "raw" / "parts" / "c.part" / "photo.png")
    return project


def test_old_leftovers_go_and_nothing_else(many: Path) -> None:
    before = {path for path in many.rglob("*") if path.is_file()}
    plan = collect(many, FakeRegistry())
    gone = {path.relative_to(many).as_posix() for path in before if not path.exists()}
    assert gone == {
        ".pvqae/work/demo/network-a/old/full/checkpoint.safetensors",
        ".pvqae/cache/features/ab/old.safetensors",
        ".pvqae/bundles/pvqae-demo-a-1/config.json",
        "models/demo/a/.old.part/weights",
    }
    assert sum(item.size for item in plan.items) == len(gone)
    assert not collect(many, FakeRegistry()).items


def test_nothing_goes_without_a_yes(many: Path) -> None:
    before = sorted(many.rglob("*"))
    plan = collect(many, FakeRegistry(), lambda plan: False)
    assert len(plan.items) == 4
    assert {item.path for item in plan.items} <= set(before)
    assert [path for path in sorted(many.rglob("*")) if path.suffix != ".lock"] == before


def test_a_version_with_an_alias_keeps_its_copy(many: Path) -> None:
    registry = FakeRegistry(
        versions={"pvqae-demo-a": [{"data_sha": "none"}]}, aliases={("pvqae-demo-a", "champion"): "1"}
    )
    collect(many, registry)
    assert (many / ".pvqae" / "bundles" / "pvqae-demo-a-1").exists()


def test_what_a_flow_works_on_is_left(many: Path) -> None:
    cached(many, 7)
    with shared_files.held(many / ".pvqae" / "locks" / "demo.lock"):
        plan = collect(many, FakeRegistry())
    assert "left alone, a flow holds demo.lock" in plan.busy
    assert (many / ".pvqae" / "work" / "demo" / "network-a" / "old").exists()
    assert (many / "models" / "demo" / "a" / ".old.part").exists()
    assert objects(many) == {7}


def test_no_flow_starts_while_files_go(many: Path) -> None:
    file = many / ".pvqae" / "locks" / "demo.lock"
    with shared_files.held(file):
        pass

    def confirm(plan: gc.Plan) -> bool:
        with shared_files.tried(file) as free:
            assert not free
        return True

    collect(many, FakeRegistry(), confirm)


def test_the_cache_keeps_what_versions_branches_and_work_trees_need(project: Path) -> None:
    version, here, spare = (cached(project, n, inside) for n, inside in ((1, (2, 3)), (4, (5,)), (6, (7,))))
    for number in (2, 3, 5, 7, 8, 9):
        cached(project, number, old=number != 9)  # 9 is young: a flow may just have made it
    first = git.record(project, {"demo/dvc.lock": write(project / "one", lock(version))}, "registered")
    git.record(project, {"demo/dvc.lock": write(project / "one", lock(spare))}, "of a run without a version")
    git.record(project, {"demo/dvc.lock": write(project / "one", lock())}, "the tip")
    (project / "one").unlink()
    (project / "dvc.lock").write_text(lock(here))
    run = write(project / ".dvc" / "cache" / "runs" / "ab" / "abc" / "def", lock(spare))
    registry = FakeRegistry(versions={"pvqae-demo-a": [{"data_sha": first}]})
    collect(project, registry)
    assert objects(project) == {1, 2, 3, 4, 5, 9}
    assert not run.exists()


def test_data_of_a_users_branch_stays(project: Path) -> None:
    name = cached(project, 1)
    write(project / "data" / "raw" / "parts.dvc", yaml.safe_dump({"outs": [{"md5": name, "path": "parts"}]}))
    commit(project)
    git.git(project, "branch", "other")
    git.git(project, "rm", "-q", "data/raw/parts.dvc")
    commit(project)
    collect(project, FakeRegistry())
    assert objects(project) == {1}


@pytest.mark.parametrize("level", ["config.local", "config"])
def test_a_cache_that_others_use_is_left_alone(project: Path, tmp_path: Path, level: str) -> None:
    cached(project, 1)
    cached(tmp_path / "others", 2)
    with (project / ".dvc" / level).open("a") as settings:
        settings.write(f"[cache]\n    dir = {tmp_path / 'others' / '.dvc' / 'cache'}\n")
    plan = collect(project, FakeRegistry())
    assert any("is not this project's alone" in line for line in plan.lines)
    assert objects(tmp_path / "others") == {2}


@pytest.mark.parametrize("damage", ["", "<<<<<<< HEAD", "outs:\n- md5: 01", "outs: [{md5: AB}]"])
def test_a_damaged_dvc_file_lets_nothing_go(project: Path, damage: str) -> None:
    cached(project, 1)
    write(project / "data" / "raw" / "parts.dvc", damage)
    with pytest.raises(PvqaeError, match=r"parts\.dvc(:| was cut)"):
        collect(project, FakeRegistry())
    assert objects(project) == {1}


def test_a_file_that_cannot_be_read_lets_nothing_go(project: Path) -> None:
    cached(project, 1)
    (project / "dvc.lock").write_text("stages: [")
    with pytest.raises(PvqaeError, match=r"dvc.lock: not a lock file"):
        collect(project, FakeRegistry())
    assert objects(project) == {1}
    assert gc.HASH.fullmatch("0" * 32)


def test_a_workspace_goes_with_its_worktree_unless_its_dataset_has_versions(project: Path) -> None:
    for name in ("tried", "kept"):
        space = project / ".pvqae" / "runs" / name
        git.git(project, "worktree", "add", "--quiet", "--detach", str(space), "HEAD")
        for path in (space, *space.rglob("*")):
            os.utime(path, (OLD, OLD))
    collect(project, FakeRegistry(versions={"pvqae-kept-a": [{"data_sha": "none"}]}))
    assert [path.name for path in (project / ".pvqae" / "runs").iterdir()] == ["kept"]
    assert git.git(project, "worktree", "list").count("\n") == 1


def test_facts_of_other_code_go(project: Path) -> None:
    cache = project / ".pvqae" / "cache"
    mine, other = write(inspection.file(cache)), write(cache / "facts-0123456789abcdef.sqlite")
    collect(project, FakeRegistry())
    assert mine.exists()
    assert not other.exists()


@pytest.mark.parametrize(("words", "gone"), [((), False), (("--dry-run", "--yes"), False), (("--yes",), True)])
def test_the_command_removes_only_when_told(
    many: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], gone: bool
) -> None:
    monkeypatch.chdir(many)
    monkeypatch.setattr("flows.cli.machines.registry", lambda root, strict: FakeRegistry())
    monkeypatch.setattr("flows.cli.machines.project", lambda: many)
    result = CliRunner().invoke(main.app, ["gc", *words])
    assert result.exit_code == 0, result.output
    assert "     4 in all: 0.0 MB" in result.output
    assert ("nothing was removed" in result.output) is not gone
    assert (many / "models" / "demo" / "a" / ".old.part").exists() is not gone
