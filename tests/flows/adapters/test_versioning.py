"""DVC as the flows use it, and its twin: one contract. Real DVC in a temporary project."""

import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from flows.adapters import dvc_command, dvc_files
from flows.adapters.fakes import FakeVersioning
from flows.adapters.versioning import Dvc, StageFailed, Versioning, VersioningError, bring, remember
from flows.core import shared_files
from flows.core.processes import Supervisor
from pvqae.core.errors import DataError


@pytest.fixture
def real(project: Path) -> Iterator[Dvc]:
    with Supervisor() as supervisor:
        yield Dvc(project, supervisor)


@pytest.fixture
def twin() -> FakeVersioning:
    return FakeVersioning(changed={"manifest", "train@one", "train@two"})


@pytest.fixture(params=["real", "twin"])
def versioning(request: pytest.FixtureRequest) -> Versioning:
    found: Versioning = request.getfixturevalue(request.param)
    return found


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_only_what_changed_runs(versioning: Versioning) -> None:
    assert versioning.status() == {"manifest", "train@one", "train@two"}
    lines: list[str] = []
    assert versioning.repro("manifest", lines.append) == "ran"
    assert "Running stage 'manifest'" in lines[0]
    assert versioning.repro("train@one") == "ran"
    assert versioning.status() == {"train@two"}
    assert versioning.repro("train@one") == "unchanged"


def test_a_dataset_gets_a_version_per_content(versioning: Versioning, tmp_path: Path) -> None:
    source = images(tmp_path / "source", "good/1.png", "good/2.png")
    assert versioning.data_hash("parts") == ""
    assert versioning.add_dataset("parts", source)
    first = versioning.data_hash("parts")
    assert first
    assert not versioning.add_dataset("parts", source)
    images(source, "good/3.png")
    (source / "good" / "1.png").unlink()
    assert versioning.add_dataset("parts", source)
    assert versioning.data_hash("parts") not in ("", first)
    versioning.push()


def test_what_the_cache_knows_is_restored_and_live_lines_have_no_hints(real: Dvc, project: Path) -> None:
    lines: list[str] = []
    real.repro("manifest", lines.append)
    assert "line of the stage" in lines
    assert not [line for line in lines if "git add" in line or not line.strip()]
    (project / "data" / "manifest.csv").unlink()
    assert "manifest" in real.status()
    assert real.repro("manifest") == "restored"


@pytest.mark.parametrize(("code", "repeatable"), [(1, True), (2, False)])
def test_a_failed_stage_says_its_output_and_whether_another_try_can_help(
    real: Dvc, project: Path, code: int, repeatable: bool
) -> None:
    (project / "exit").write_text(str(code))
    with pytest.raises(StageFailed, match="line of the stage") as failed:
        real.repro("manifest")
    assert (failed.value.code, failed.value.repeatable) == (code, repeatable)


def test_data_that_the_check_refuses_is_not_checked_again() -> None:
    assert not StageFailed("validate", 1, "50 of 51 expectations hold").repeatable
    assert StageFailed("validate", 137, "killed").repeatable


def test_the_real_dataset_mirrors_its_source_and_leaves_it_alone(real: Dvc, project: Path, tmp_path: Path) -> None:
    source = images(tmp_path / "source", "good/1.png", ".DS_Store")
    before = [(path, path.stat().st_mode, path.stat().st_nlink) for path in sorted(source.rglob("*"))]
    real.add_dataset("parts", source)
    assert [(path, path.stat().st_mode, path.stat().st_nlink) for path in sorted(source.rglob("*"))] == before
    raw = project / "data" / "raw" / "parts"
    assert [path.relative_to(raw).as_posix() for path in raw.rglob("*.*")] == ["good/1.png"]
    images(source, "good/2.png")
    (source / "good" / "1.png").unlink()
    real.add_dataset("parts", source)
    assert [path.name for path in raw.rglob("*.png")] == ["2.png"]


def test_an_old_version_comes_back_with_its_dvc_file(real: Dvc, project: Path, tmp_path: Path) -> None:
    source = images(tmp_path / "source", "1.png")
    real.add_dataset("parts", source)
    file = project / "data" / "raw" / "parts.dvc"
    old = file.read_text()
    images(source, "2.png")
    real.add_dataset("parts", source)
    file.write_text(old)
    real.checkout("parts")
    assert [path.name for path in (project / "data" / "raw" / "parts").iterdir()] == ["1.png"]


def test_hard_links_share_the_original_only_when_asked_for(tmp_path: Path) -> None:
    source = images(tmp_path / "source", "1.png")
    for link, shared in (("copy", False), ("hardlink", True)):
        bring(tmp_path, link, source, link)  # type: ignore[arg-type]
        assert (tmp_path / "data" / "raw" / link / "1.png").samefile(source / "1.png") is shared


def test_a_read_only_original_can_be_brought_in_twice(tmp_path: Path) -> None:
    source = images(tmp_path / "source", "good/1.png")
    (source / "good").chmod(stat.S_IRUSR | stat.S_IXUSR)
    for _ in range(2):
        assert bring(tmp_path, "parts", source)
    (source / "good").chmod(0o755)
    assert (tmp_path / "data" / "raw" / "parts" / "good").stat().st_mode & stat.S_IWUSR


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda root: root / "nowhere", "found nothing"),
        (lambda root: images(root, "file") / "file", "found a file"),
        (lambda root: images(root, "empty/a").joinpath("empty", "a").unlink() or root / "empty", "has no files"),
        (lambda root: images(root / "data" / "raw" / "parts", "1.png"), "project's own"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path: Path, prepare: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(DataError, match=said):
        bring(tmp_path, "parts", prepare(tmp_path))


def test_a_kill_between_the_renames_is_repaired_by_the_next_call(tmp_path: Path) -> None:
    source = images(tmp_path / "source", "1.png")
    images(tmp_path / ".pvqae" / "incoming" / "parts", "half.png")
    images(tmp_path / ".pvqae" / "outgoing" / "parts", "old.png", "arrived/new.png")
    remember(tmp_path, "parts", source)  # as if all had been well before
    assert bring(tmp_path, "parts", source, known=True)
    below = tmp_path / "data" / "raw" / "parts"
    assert {path.relative_to(below).as_posix() for path in below.rglob("*.png")} == {"1.png", "arrived/new.png"}


def test_a_dataset_that_dvc_would_never_push_is_an_error(real: Dvc, project: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text("/data/raw/*\n!/data/raw/*.dvc\n")
    with pytest.raises(VersioningError, match=r"data/raw/\?\*"):
        real.add_dataset("parts", images(tmp_path / "source", "1.png"))


@pytest.mark.parametrize("file", [".dvc/tmp/rwlock", "dvc.lock"])
@pytest.mark.parametrize("kept", [0, 1, 10, 40, 70])
def test_a_file_of_dvc_that_a_kill_cut_off_needs_no_hand(real: Dvc, project: Path, file: str, kept: int) -> None:
    real.repro("manifest")
    whole = (project / "dvc.lock").read_text()
    before = whole if file == "dvc.lock" else json.dumps({"write": {}, "read": {"data": [{"pid": 1, "cmd": "x" * 50}]}})
    (project / file).write_text(before[:kept])
    assert real.status() >= {"train@one"}
    assert real.repro("manifest") in ("restored", "unchanged")
    assert (project / "dvc.lock").read_text() == whole


def test_locks_that_a_living_process_holds_are_left_alone(real: Dvc, project: Path) -> None:
    real.repro("manifest")
    (project / ".dvc" / "tmp" / "rwlock").write_text("")
    with shared_files.held(project / ".dvc" / "tmp" / "rwlock.lock"):
        assert dvc_files.mend(project) == []
    assert dvc_files.mend(project) == [".dvc/tmp/rwlock"]
    assert dvc_files.mend(project) == []


@pytest.mark.parametrize("kept", [0, 3, 40, 70, 93])
def test_a_dataset_whose_dvc_file_was_cut_off_keeps_its_version(
    real: Dvc, project: Path, tmp_path: Path, kept: int
) -> None:
    real.add_dataset("parts", images(tmp_path / "source", "1.png"))
    file, version = project / "data" / "raw" / "parts.dvc", real.data_hash("parts")
    whole = file.read_text()
    assert len(whole) > 93
    file.write_text(whole[:kept])
    assert real.data_hash("parts") == version
    assert file.read_text() == whole


HASH = "0123456789abcdef" * 2
WRITTEN = f"outs:\n- md5: {HASH}.dir\n  size: 3517\n  nfiles: 24\n  hash: md5\n  path: NAME\n"


@pytest.mark.parametrize(("name", "path"), [("parts", "parts"), ("08", "'08'"), ("no", "no"), ("1_000", "'1_000'")])
def test_a_dvc_file_is_cut_off_at_every_place(tmp_path: Path, name: str, path: str) -> None:
    file, whole = tmp_path / f"{name}.dvc", WRITTEN.replace("NAME", path)
    for kept in range(len(whole) - 1):
        file.write_text(whole[:kept])
        assert dvc_files.version_in(file) == "", whole[:kept]
    for text in (
        whole,
        whole.rstrip("\n"),
        whole + "meta: {who: me}\n",
        whole.replace("  size", "  desc: lot 47\n  size"),
    ):
        file.write_text(text)
        assert dvc_files.version_in(file) == f"{HASH}.dir"


DAMAGED = {  # .dvc files of parts that may be all that names a version, and what of them is told
    "conflict": (WRITTEN.replace("- md5", "<<<<<<< HEAD\n- md5", 1), "<<<<<<< HEAD"),
    "both sides": (
        WRITTEN.replace("outs:", "<<<<<<< ours\nouts:") + "=======\nouts:\n>>>>>>> theirs\n",
        "<<<<<<< ours",
    ),
    "diff3": (WRITTEN.replace("  size", "||||||| base\n  size"), "||||||| base"),
    "mistyped hash": (WRITTEN.replace(HASH, HASH[:-1]), f"- md5: {HASH[:-1]}.dir"),
    "capital hash": (WRITTEN.replace(HASH, HASH.upper()), f"- md5: {HASH.upper()}.dir"),
    "of a cloud": ("outs:\n- path: NAME\n  files:\n  - relpath: 1.png\n    version_id: x\n", "- path: NAME"),
    "two outputs": (WRITTEN + WRITTEN.removeprefix("outs:\n"), f"- md5: {HASH}.dir"),
    "another path": (WRITTEN.replace("NAME", "other"), "  path: other"),
    "begins with another": ("deps:\n- md5", "deps:"),
    "no YAML": ("\x00\x00", "\x00\x00"),
    "an editor's backup": ("outs:\n - md5: 01", " - md5: 01"),
}


@pytest.mark.parametrize(("text", "told"), DAMAGED.values(), ids=DAMAGED)
def test_any_other_damage_to_a_dvc_file_stops_everything_and_touches_nothing(
    real: Dvc, project: Path, tmp_path: Path, text: str, told: str
) -> None:
    source, raw = images(tmp_path / "source", "1.png"), images(project / "data" / "raw" / "parts", "0.png")
    file = raw.with_suffix(".dvc")
    file.write_bytes(text.replace("NAME", "parts").encode())
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    told = told.replace("NAME", "parts")
    for act in (lambda: real.add_dataset("parts", source), lambda: real.version_dataset("parts")):
        with pytest.raises(DataError, match=re.escape(repr(told))) as error:
            act()
        assert str(file) in str(error.value)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("there", [False, True])
def test_a_cut_off_file_stays_where_the_images_are_not_its_version(real: Dvc, project: Path, there: bool) -> None:
    file, left = project / "data" / "raw" / "parts.dvc", WRITTEN[:30]
    file.parent.mkdir(parents=True)
    if there:
        images(project / "data" / "raw" / "parts", "1.png")
    file.write_text(left)
    with pytest.raises(DataError, match="was cut off, and"):
        real.data_hash("parts")
    assert file.read_text() == left


LOCKED = {
    "train@08": {
        "cmd": "python stage.py " + "word " * 30,
        "deps": [{"path": "a b", "hash": "md5", "md5": HASH, "size": 3}],
    },
    "report": {
        "cmd": "x",
        "params": {"params.yaml": {"seed": 0}},
        "outs": [{"path": "models/x", "md5": f"{HASH}.dir"}],
    },
}


def test_a_lock_file_that_was_cut_off_anywhere_is_one_that_dvc_reads_or_goes(tmp_path: Path) -> None:
    lock, whole = tmp_path / "dvc.lock", dvc_command.text_of({"schema": "2.0", "stages": LOCKED})
    for kept in range(len(whole)):
        lock.write_text(whole[:kept])
        assert set(dvc_files.stages_in(lock)) <= set(LOCKED)
        if list(dvc_files._broken(tmp_path)) == []:
            COMPILED_LOCKFILE_SCHEMA(dvc_command.parse(whole[:kept]))
    lock.write_text(whole)
    assert dvc_files.stages_in(lock) == LOCKED
    assert list(dvc_files._broken(tmp_path)) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("  report:", "<<<<<<< HEAD\n  report:\n=======\n>>>>>>> lot-47"),
        lambda text: text.replace("schema: '2.0'\n", ""),
        lambda text: text.replace("cmd:", "comand:", 1),
        lambda text: "- a list\n" + "- of things\n",
        lambda text: text.replace("  report:", "  other: 3\n  report:"),
        lambda text: text + ">>>>>>> lot-47\n",
    ],
)
def test_any_other_damage_to_the_lock_file_stops_and_touches_nothing(
    real: Dvc, project: Path, damage: Callable[[str], str]
) -> None:
    lock = project / "dvc.lock"
    lock.write_text(damage(dvc_command.text_of({"schema": "2.0", "stages": LOCKED})))
    before = lock.read_bytes()
    for act in (lambda: dvc_files.mend(project), lambda: real.data_hash("parts")):
        with pytest.raises(DataError, match=r"dvc\.lock: not a lock file .*\(rm "):
            act()
    assert lock.read_bytes() == before


def test_the_guard_of_hard_links_is_left_to_who_holds_it(project: Path) -> None:
    """core.hardlink_lock: the guard is there as long as a process holds it."""
    (project / "dvc.lock").write_text("schema: '2")
    guard = project / dvc_files._GUARD
    guard.parent.mkdir(parents=True, exist_ok=True)
    guard.unlink(missing_ok=True)
    claim = guard.with_name("claim")
    claim.touch()
    guard.hardlink_to(claim)
    assert dvc_files.mend(project) == []
    guard.unlink()
    assert dvc_files.mend(project) == ["dvc.lock"]
