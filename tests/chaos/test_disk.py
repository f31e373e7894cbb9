"""A disk that fills up at any byte, on a small tmpfs: a clear error, nothing half, and after freeing all goes on."""

import contextlib
import errno
import hashlib
import random
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeLanding, FakeVersioning
from flows.core import shared_files
from flows.retrain import arrivals, index
from flows.retrain.admission import admit
from flows.retrain.ledger import IntakePaths, Ledger
from pvqae.core import errors
from pvqae.core.files import digest, whole_folder, write_text
from pvqae.core.layout import ARRIVED
from pvqae.serving import batch, batch_source
from tests.chaos import invariants, projects
from tests.chaos.figures import Figure, record, size
from tests.chaos.projects import Project, train
from tests.chaos.test_s3_faults import PARAMS, screen
from tests.flows.retrain.test_arrivals import encoded, photograph
from tests.pvqae.serving.test_batch import Detector

SEED = 31
PAGE = 4096  # a tmpfs gives room by pages


@contextlib.contextmanager
def small(place: Path, mb: float) -> Iterator[Path]:
    """A file system of its own at `place`; skips where none may be mounted."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(mb * 2**20)},mode=755", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs can't be mounted here: run as root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Ballast:
    """A file that leaves only some bytes free."""

    def __init__(self, place: Path) -> None:
        self._place, self._file = place, place / "ballast"

    def leave(self, free: int) -> None:
        self.remove()
        room = shutil.disk_usage(self._place).free - free
        with self._file.open("wb") as file:
            file.truncate(0)
            for _ in range(max(0, room) // PAGE):
                file.write(b"\0" * PAGE)

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)


def full(work: Callable[[], object]) -> bool:
    """Whether `work` met the full disk; any other error is a fault."""
    try:
        work()
    except (OSError, sqlite3.Error) as error:
        if not errors.is_full(error):
            raise
        return True
    return False


def test_the_intake_loses_and_doubles_nothing_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    began, rng, lost = time.monotonic(), random.Random(SEED), []
    tried = 0
    contents = {f"nut/{seed:03}.png": encoded(photograph(seed)) for seed in range(8)} | {"nut/bad.png": b"no image"}
    for number in range(size(6, 60)):
        with small(tmp_path / f"intake{number}", 1) as place:
            ballast, work = Ballast(place), intake(place / "project", contents)
            for _ in range(3):
                ballast.leave(rng.randrange(0, 40) * PAGE)
                tried += full(work)
            ballast.remove()
            work()
            lost += [f"{number}: {text}" for text in broken(place / "project", contents)]
    what = "a disk that fills up during the intake: each sample once after freeing"
    record(Figure("41_disk_intake", what, tried, tried - len(lost), len(lost), time.monotonic() - began))
    assert not lost, f"seed {SEED}: {lost}"
    assert tried


def intake(root: Path, contents: dict[str, bytes]) -> Callable[[], None]:
    places, raw, dvc = IntakePaths(root, "nuts"), root / "data" / "raw" / "nuts", FakeVersioning()

    def run() -> None:
        raw.mkdir(parents=True, exist_ok=True)
        area, ledger = FakeLanding(dict(contents)), Ledger(places.ledger)
        items, _ = arrivals.new_objects(area, ledger, ["nut"], ["nut"], 100)
        arrivals.Intake(area, places, ledger, index.Index(), screen, PARAMS).take(items)
        admit(places, raw, ledger, dvc, lambda message: "")

    return run


def broken(root: Path, contents: dict[str, bytes]) -> list[str]:
    entries = Ledger(IntakePaths(root, "nuts").ledger).entries()
    states = {entry.key: entry.state for entry in entries}
    wanted = {key: "quarantined" if "bad" in key else "versioned" for key in contents}
    there = Counter(digest(path) for path in (root / "data" / "raw" / "nuts" / ARRIVED).rglob("*.png"))
    good = Counter(hashlib.sha256(data).hexdigest() for key, data in contents.items() if "bad" not in key)
    found = [] if states == wanted and len(entries) == len(wanted) else [f"the ledger says {states}"]
    return found + ([] if there == good else [f"{sum(there.values())} files of {sum(good.values())}"])


@pytest.mark.parametrize("heatmaps", [False, True])
def test_scoring_goes_on_to_the_same_files_after_a_full_disk(tmp_path: Path, heatmaps: bool) -> None:
    began, rng, lost, tried = time.monotonic(), random.Random(SEED), [], 0
    source = tmp_path / "images"
    source.mkdir()
    for seed in range(12):
        (source / f"{seed:03}.png").write_bytes(encoded(photograph(seed)))
    detector = Detector()
    batch.run(detector, batch_source.Files((source,)), tmp_path / "wanted", heatmaps=heatmaps)  # type: ignore[arg-type]
    wanted = files_of(tmp_path / "wanted")
    for number in range(size(5, 40)):
        with small(tmp_path / f"score{number}", 1) as place:
            ballast = Ballast(place)

            def work(out: Path = place / "out") -> None:
                batch.run(detector, batch_source.Files((source,)), out, heatmaps=heatmaps)  # type: ignore[arg-type]

            for _ in range(3):
                ballast.leave(rng.randrange(0, 24) * PAGE)
                tried += full(work)
            ballast.remove()
            work()
            if files_of(place / "out") != wanted:
                lost.append(f"{number}: other files than without a full disk")
    what = f"a disk that fills up during scoring{' with heatmaps' if heatmaps else ''}: the same files after freeing"
    figure = Figure(f"42_disk_score{'_maps' * heatmaps}", what, tried, tried - len(lost), len(lost), 0.0)
    record(Figure(**{**vars(figure), "seconds": time.monotonic() - began}))
    assert not lost, f"seed {SEED}: {lost}"
    assert tried


def files_of(out: Path) -> dict[str, bytes]:
    """All that scoring wrote, without its journal."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*") if path.name[0] != "."}


def test_whole_files_and_lines_survive_a_full_disk(tmp_path: Path) -> None:
    with small(tmp_path / "files", 1) as place:
        ballast, log = Ballast(place), place / "log.jsonl"
        write_text(place / "note", "before")
        with whole_folder(place / "folder") as part:
            (part / "a").write_text("before")
        shared_files.append(log, [{"n": 0}])
        ballast.leave(2 * PAGE)

        def folder() -> None:
            with whole_folder(place / "folder") as part:
                (part / "a").write_bytes(b"x" * 10 * PAGE)

        assert full(lambda: write_text(place / "note", "x" * 10 * PAGE))
        assert full(folder)
        assert full(lambda: shared_files.append(log, [{"n": "x" * 10 * PAGE}]))
        assert (place / "note").read_text() == "before"
        assert (place / "folder" / "a").read_text() == "before"
        assert list(shared_files.records(log, dict)) == [{"n": 0}]
        ballast.remove()
        shared_files.append(log, [{"n": 1}])
        assert list(shared_files.records(log, dict)) == [{"n": 0}, {"n": 1}]
        assert not list(place.glob("*.part"))


@pytest.mark.integration
@pytest.mark.filterwarnings("default")  # MLflow's own, of its import
def test_flows_on_a_disk_that_fills_up_say_so_and_go_on_after_freeing(tmp_path: Path) -> None:
    began, tried, lost = time.monotonic(), 0, []
    with small(tmp_path / "disk", 700) as place:
        project, ballast = projects.made(place), Ballast(place)
        for free in (1, 4, 12, 30)[: size(2, 4)]:  # MB: it fills up at ever later steps
            ballast.leave(free * 2**20)
            tried += 1
            lost += said(project, *train(project, 0))
        ballast.remove()
        project.run(*train(project, 0))
        lost += invariants.after_rerun(project)
        source = str(place / "photographs" / projects.CATEGORY / "good")
        for words in (("score", f"{projects.MODEL}@1", source), ("retrain", "--dataset", projects.DATASET)):
            projects.land(project, projects.later(place, 3), "new") if words[0] == "retrain" else None
            ballast.leave(2**20)
            tried += 1
            lost += said(project, *words)
            ballast.remove()
            project.run(*words)
            lost += invariants.after_rerun(project)
    what = "train, score and retrain on a full disk: the error names it, a rerun after freeing ends well"
    record(Figure("43_disk_flows", what, tried, max(0, tried - len(lost)), len(lost), time.monotonic() - began))
    assert not lost, lost


def said(project: Project, *words: str) -> list[str]:
    """What is wrong about the end of a command that met the full disk; what it prints is kept elsewhere."""
    done = subprocess.run(
        [*projects.FLOWS, *words], cwd=project.root, env=project.environ, capture_output=True, text=True, check=False
    )
    text = done.stdout + done.stderr
    named = done.returncode in (1, 2) and f"a disk is full: {project.root}" in text
    found = [] if named else [f"{words[0]} ended with {done.returncode} and said {text[-1500:]}"]
    return found + [f"lives on: {line}" for line in projects.left_over(project)]


def test_a_quota_is_a_full_disk_too() -> None:
    assert errors.is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
