"""Bad images in a folder: right pixels or a reason, within a time, and nothing of what lies outside the folder."""

import csv
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pvqae.core import config, files
from pvqae.core.errors import PvqaeError
from pvqae.core.layout import Layout
from pvqae.datasets import build
from pvqae.inference import bundle
from pvqae.samples import images, manifest
from pvqae.samples.images import SUFFIXES
from pvqae.serving import batch, batch_rows, batch_source
from tests.chaos import bad_images
from tests.chaos.bad_images import Bad
from tests.chaos.figures import Figure, record, size

SEED = 6
SECONDS = 20  # that one image may take; the slowest take a tenth of a second on a quiet machine
# Pillow warns of much that it then reads or refuses; a program goes on after a warning, so must these tests.
pytestmark = pytest.mark.filterwarnings("default")


class Hang(BaseException):
    """Nothing catches it by mistake."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(bad: Bad, path: Path) -> str:
    """What is wrong with what `images.read` makes of a bad image, "" if nothing is."""
    try:
        with limited(SECONDS):
            pixels = images.read(path)
    except PvqaeError as error:
        return "" if path.name in str(error) and len(str(error)) < 2000 else f"a bad message: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if bad.expected == bad_images.REFUSED:
        return f"read as {pixels.shape}"
    if not (np.isfinite(pixels).all() and 0 <= pixels.min() <= pixels.max() <= 1 and pixels.shape[2] == 3):
        return "pixels out of range"
    if bad.expected == bad_images.ANY or bad.pixels is None:
        return ""
    return "" if pixels.shape == bad.pixels.shape and np.allclose(pixels, bad.pixels, atol=0.01) else "wrong pixels"


def test_reading_gives_the_right_pixels_or_a_reason(tmp_path: Path) -> None:
    begun, lost = time.monotonic(), []
    many = bad_images.generate(SEED, size(160, 1600))
    for number, bad in enumerate(many):
        path = tmp_path / f"{number}.{bad.name.rpartition('.')[2]}"
        path.write_bytes(bad.data)
        if what := problem(bad, path):
            lost.append(f"{SEED}/{number} {bad.name!r}: {what}")
        path.unlink()
    what = "bad image read: right pixels, or refused with its reason"
    seconds = time.monotonic() - begun
    record(Figure("bad-images-read", what, len(many), len(many) - len(lost), len(lost), seconds))
    assert lost == []


def special(folder: Path, outside: Path) -> int:
    """What is named like an image and is none, or leads out of `folder`; returns how many, without the folder."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        listener.bind("socket.png")
        os.chdir(before)
    links = {"dangling.png": "nowhere.png", "circle.png": "circle.png", "escape.png": str(outside)}
    links |= {"climb.png": f"../../../../../../../{outside}", "device.png": "/dev/zero", "password.png": "/etc/passwd"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return 2 + len(links)


def written(folder: Path, many: list[Bad]) -> list[Bad]:
    """Those whose names this file system takes, in `folder`, one per stem: others are refused as a pair."""
    kept, stems = [], set()
    for bad in many:
        stem = bad.name.rpartition(".")[0]
        if stem in stems:
            continue
        stems.add(stem)
        (folder / bad.name).write_bytes(bad.data)
        if not bad.name.startswith("."):  # hidden files are not ours
            kept.append(bad)
    return kept


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An image that nothing may read."""
    images.write(tmp_path / "secret" / "outside.png", np.full((24, 32, 3), 0.5, dtype=np.float32))
    return tmp_path / "secret" / "outside.png"


def test_a_manifest_leaves_bad_images_out_with_a_reason(tmp_path: Path, tiny_mvtec: Path, outside: Path) -> None:
    begun = time.monotonic()
    layout = Layout(tmp_path / "project", "tiny")
    layout.raw.parent.mkdir(parents=True)
    tiny_mvtec.rename(layout.raw)
    folder = layout.raw / "part" / "train" / "good"
    many = written(folder, bad_images.generate(SEED + 1, size(120, 1600)))
    placed = len(many) + special(folder, outside)
    for kind in ("=cmd|' C calc'!A0", "new\nline"):
        images.write(layout.raw / "part" / "test" / kind / "000.png", np.full((24, 32, 3), 0.1, np.float32))
        mask = layout.raw / "part" / "ground_truth" / kind / "000_mask.png"
        images.write(mask, np.ones((24, 32), dtype=np.bool_))
    params = config.Params(data=config.Data(name="tiny", source="mvtec", max_quarantine=1.0))
    with limited(SECONDS * 60):
        build.build(layout.root, params)
    frame = manifest.read(layout.manifest)
    with layout.quarantine.open(encoding="utf-8", newline="") as lines:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(lines)}
    lost = [path for path, reason in reasons.items() if len(reason) < 10 or str(tmp_path) in reason]
    for bad in many:
        path = f"raw/tiny/part/train/good/{files.shown(bad.name)}"
        accepted = path in set(frame["path"])
        if accepted == (path in reasons) or (accepted and bad.expected == bad_images.REFUSED):
            lost.append(f"{SEED + 1} {bad.name!r}: {accepted=}, {reasons.get(path)}")
    whole = frame[~frame["path"].str.startswith("gate/")]
    lost += [] if len(whole) + len(reasons) == 47 + placed + 2 else ["rows are missing"]
    lost += [path for path in frame["path"] if not files.resolve(layout.data, path).is_file()]
    lost += [name for name in ("escape", "climb", "pipe") if not any(f"{name}.png" in path for path in reasons)]
    lost += [kind for kind in frame["kind"] if kind.startswith("=")]
    lost += ["outside"] * int(frame["sha256"].eq(files.digest(outside)).any())
    what, tried = "bad file in a dataset: in the manifest whole, or in the quarantine list with its reason", placed + 2
    record(Figure("bad-images-manifest", what, tried, tried - len(lost), len(lost), time.monotonic() - begun))
    assert lost == []


def test_batch_scoring_scores_or_says_why_not(tmp_path: Path, tiny_bundle: Path, outside: Path) -> None:
    begun, folder = time.monotonic(), tmp_path / "in"
    folder.mkdir()
    many = written(folder, bad_images.generate(SEED + 2, size(64, 800)))
    special(folder, outside)
    threads = torch.get_num_threads()
    with limited(SECONDS * 60):
        found = batch.run(bundle.load(tiny_bundle), batch_source.Files((folder,)), tmp_path / "out")
    torch.set_num_threads(threads)
    lines = (tmp_path / "out" / batch_rows.JSONL).read_text("utf-8").split("\n")[:-1]
    rows = {Path(row["path"]).name: row for row in map(json.loads, lines)}
    lost = [name for name, row in rows.items() if not sound(row)]
    for bad in many:
        row = rows.get(files.shown(bad.name))
        if row is None or (bad.expected == bad_images.REFUSED and row["score"] is not None):
            lost.append(f"{SEED + 2} {bad.name!r}: {row}")
    lost += [n for n in ("pipe", "socket", "escape", "climb", "device") if not rows[f"{n}.png"]["error"]]
    with (tmp_path / "out" / batch_rows.CSV).open(encoding="utf-8", newline="") as table:
        lost += [] if [r["path"] for r in csv.DictReader(table)] == [r["path"] for r in rows.values()] else ["csv"]
    assert len(rows) == found.images == len(many) + 8
    what = "bad file in a batch: a finite score of its pixels, or a row with its reason"
    record(Figure("bad-images-scored", what, len(rows), len(rows) - len(lost), len(lost), time.monotonic() - begun))
    assert lost == []


def sound(row: dict[str, object]) -> bool:
    """Either a finite score or a reason, never both."""
    if row["error"]:
        return row["score"] is None and row["decision"] == "" and len(str(row["error"])) > 10
    return isinstance(row["score"], float) and math.isfinite(row["score"])


def test_names_that_a_spreadsheet_would_run_are_no_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("=cmd|calc.png").write_bytes(b"x")
    assert [item.path for item in batch_source.Files((Path(),)).items()] == ["./=cmd|calc.png"]
    assert [item.path for item in batch_source.Files((Path("=cmd|calc.png"),)).items()] == ["./=cmd|calc.png"]


MEASURE = """
import resource, sys, warnings
from pathlib import Path
from pvqae.samples import images
from pvqae.core.errors import DataError
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        images.read(path)
    except DataError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
MEGABYTES = 400  # above that of the program itself; 30,000 x 30,000 pixels would take 10,800


def test_bombs_take_little_memory(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    for number in range(12):
        kind = (bad_images.bomb, bad_images.huge_header, bad_images.strip)[number % 3]
        suffix, data, _, _ = kind(rng)
        assert len(data) < 4_000_000
        (tmp_path / f"{number}.{suffix}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    scale = 1024 if sys.platform == "linux" else 1
    assert int(done.stdout) * scale < MEGABYTES * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_every_suffix_of_an_image_is_drawn() -> None:
    drawn = {f".{bad.name.rpartition('.')[2]}" for bad in bad_images.generate(SEED, 200)}
    assert drawn <= SUFFIXES | {".webp"}
    assert {".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"} <= drawn
