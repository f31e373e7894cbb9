"""Months of work in one process: what it holds stays level, and what it leaves on the disk is bounded by `flows gc`."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from flows.adapters import registry
from flows.upkeep import gc
from flows.versions import version_bundles
from pvqae.core.errors import PvqaeError
from pvqae.inference import bundle
from pvqae.samples import images
from pvqae.serving import batch, batch_source
from pvqae.stream import frames, pipeline, sinks
from tests.chaos import growth, rounds
from tests.chaos.figures import Figure, record, size
from tests.clones import TINY, Clone, clone
from tests.videos import video

BATCH, RELOAD = 2, 10  # images of a batch; batches with one loaded bundle
SMALL = (*TINY, "train.steps=10", "prior.steps=5", "evaluation.pictures=0")
MODEL = "pvqae-demo-brick"


def test_scoring_batches_leave_nothing_behind(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tenth batch loads the bundle anew, as a service does when an alias moves; all images are new."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    count, rng, start, lost = size(20, 1000), np.random.default_rng(0), time.monotonic(), 0
    uses = []
    for number in range(count):
        folder = tmp_path / "images" / str(number)
        for index in range(BATCH):
            images.write(folder / f"{index}.png", rng.random((64, 64, 3), dtype=np.float32))
        if number % RELOAD == 0:
            detector = bundle.load(tiny_bundle)
        found = batch.run(detector, batch_source.Files((folder,)), tmp_path / "out")
        lost += (found.images, found.scored, found.failed) != (BATCH, BATCH, 0)
        uses.append(growth.use_of(psutil.Process()))
    journal = growth.megabytes(tmp_path / "out") / (count * BATCH) * 1e6
    grown, left = growth.grown(uses), list((tmp_path / "scratch").iterdir())
    middle, end = uses[count // 2], uses[-1]
    note = (
        f"half way {middle.memory:.0f} MB, {middle.files} files, {middle.threads} threads; at the end "
        f"{end.memory:.0f}, {end.files}, {end.threads}; {journal:.0f} bytes on the disk per image"
    )
    lost = count if grown or left else lost
    what = "scoring batches in one process: memory, files, threads, children level, no temporary file left"
    record(Figure("long_scoring", what, count, count - lost, lost, time.monotonic() - start, note))
    assert not grown
    assert not left
    assert not lost


class Looping:
    """A video file that begins again at its end, and looks at the process now and then."""

    live, name = False, "looping.mkv"

    def __init__(self, file: Path, counts: frames.Counts, every: int) -> None:
        self.file, self.counts, self.every = file, counts, every
        self.uses: list[growth.Use] = []

    def frames(self, stop: threading.Event) -> Iterator[frames.Frame]:
        while not stop.is_set():
            for frame in frames.Video(str(self.file), self.name, self.counts, print, sha256="0" * 64).frames(stop):
                yield frame
                if self.counts.read % self.every == 0:
                    self.uses.append(growth.use_of(psutil.Process()))


def test_a_long_stream_holds_no_more_and_more(tiny_bundle: Path, tmp_path: Path) -> None:
    """With lines, a folder of alarms and a page; every 50th frame is an alarm."""
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'pvqae[stream]'")
    from pvqae.stream import live

    count, rng, start, counts = size(150, 50_000), np.random.default_rng(0), time.monotonic(), frames.Counts()
    some = [(rng.random((64, 64, 3)) * 50 + 100).astype(np.uint8) for _ in range(50)]
    made = video(tmp_path / "v.mkv", some)
    detector = bundle.load(tiny_bundle)
    *_, second, first = sorted(detector.score(x.astype(np.float32) / 255).image_score for x in some)
    detector = replace(detector, card=detector.card | {"threshold": (second + first) / 2})
    source = Looping(made, counts, max(1, count // 50))
    lines, alarms = sinks.Lines(tmp_path / "out", print), sinks.AlarmFolder(tmp_path / "alarms", 20, detector)
    board = live.Board(detector, "part", source.name, counts)
    settings = pipeline.Settings(queue=8, limit=count)
    pipeline.run(detector, source, counts, [lines, alarms, board], settings, print, threading.Event())
    lines.close()
    seconds, grown = time.monotonic() - start, growth.grown(source.uses)
    rows = (tmp_path / "out" / "scores.jsonl").read_bytes().count(b"\n")
    kept = len(list((tmp_path / "alarms").iterdir()))
    whole = rows == counts.scored == count and not (counts.dropped or counts.failed) and kept <= 20 * 4
    middle, end = source.uses[len(source.uses) // 2], source.uses[-1]
    note = (
        f"half way {middle.memory:.0f} MB, {middle.files} files, {middle.threads} threads; at the end "
        f"{end.memory:.0f}, {end.files}, {end.threads}; {counts.alarms} alarms; {count / seconds:.0f} frames a second"
    )
    what = "frames of a looping video in one stream: memory, files and threads level, a line for each, 20 alarms kept"
    lost = 0 if whole and not grown else count
    record(Figure("long_streaming", what, count, count - lost, lost, seconds, note))
    assert not grown
    assert whole
    assert counts.alarms == count // 50


@pytest.mark.integration
def test_retrainings_in_one_process_and_the_clean_up_after_them(tmp_path: Path) -> None:
    """Then every version still has its hashes, a rollback works and a rerun has nothing to do."""
    start, project = time.monotonic(), clone(tmp_path)
    limit = 1800  # seconds after which no further retraining starts
    words = ["-m", "tests.chaos.rounds", str(size(3, 50)), str(limit), *SMALL]
    environ = project.environ | {"PYTHONPATH": f"{project.root}{os.pathsep}{Path(__file__).parents[2]}"}
    text = command(project, words, environ)
    done = rounds.rounds(text)
    grown = growth.grown([rounds.use(facts) for facts in done])
    versions = [str(facts["version"]) for facts in done]
    assert versions == [str(number + 1) for number in range(len(done))]

    found = registry.Mlflow(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    plan, _ = gc.collect(project.root, found, 0, lambda plan: True)
    lost = sum(not whole(found, version, tmp_path / f"fetched-{version}") for version in versions)
    settings = [word for setting in (*SMALL, f"seed={len(done) - 1}") for word in ("--set", setting)]
    again = command(project, ["-m", "flows", "train", *settings])
    assert "Nothing changed: no stage ran, no version registered." in again
    flows = ["-m", "flows", "promote"]
    command(project, [*flows, "run", "demo", "brick", "--override", "a trial"])
    command(project, [*flows, "rollback", "demo", "brick", "--reason", "a trial"])
    assert found.alias(MODEL, "champion") == "1"
    lost = len(done) if grown else lost
    what = "retrainings in one process: nothing grows but what versions need; after `flows gc` all of them are whole"
    record(Figure("long_training", what, len(done), len(done) - lost, lost, time.monotonic() - start, told(done, plan)))
    assert not grown
    assert not lost


def command(project: Clone, words: list[str], environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=project.root, env=environ or project.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def whole(found: registry.Mlflow, version: str, folder: Path) -> bool:
    """Whether a version's bundle can be fetched and loaded and is the one that was evaluated."""
    try:
        bundle.load(version_bundles.fetch(found, MODEL, version, folder))
    except PvqaeError as error:
        print(error)
        return False
    return True


def told(done: list[dict], plan: gc.Plan) -> str:
    """Growth per retraining since the first, and what the clean-up freed."""
    first, last, many = done[0], done[-1], max(len(done) - 1, 1)
    each = {name: (last["sizes"][name] - first["sizes"][name]) / many for name in last["sizes"]}
    seconds = sorted(facts["seconds"] for facts in done)[len(done) // 2]
    use, before = rounds.use(last), rounds.use(done[len(done) // 2])
    sizes = ", ".join(f"{name} {value:.1f}" for name, value in each.items())
    freed = re.sub(r"\s+", " ", plan.lines[-1])
    return (
        f"{seconds:.0f} s each; memory {before.memory:.0f} MB half way, {use.memory:.0f} at the end; "
        f"{use.files} files, {use.threads} threads; MB per retraining: {sizes}; freed:{freed}"
    )
