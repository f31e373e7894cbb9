"""The command as a process: outputs, exit codes, kill and restart, SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from click.testing import Result
from typer.testing import CliRunner

from pvqae.cli import stream_command
from pvqae.cli.main import app
from pvqae.core.errors import ConfigError, DataError
from pvqae.inference.bundle import Detector
from pvqae.samples import images
from pvqae.serving import batch_cli
from tests.videos import jpeg, mjpeg, serving, video
from tests.waiting import until

pytest.importorskip("av", reason="PyAV is not installed: pip install 'pvqae[stream]'")


def command(bundle: Path, *words: str, **environ: str) -> "subprocess.Popen[str]":
    own = {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.Popen(
        [sys.executable, "-m", "pvqae.cli.main", "stream", str(bundle), *words],
        env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lines(out: Path) -> list[str]:
    file = out / "scores.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def test_a_killed_watch_goes_on_and_sigterm_ends_it(bundle: Path, pictures: list[np.ndarray], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for number, picture in enumerate(pictures):
        images.write(folder / f"{number}.png", picture.astype(np.float32) / 255)
    words = (str(folder), "--out", str(out), "--poll", "0.05")
    with command(bundle, *words) as process:
        until(lambda: len(lines(out)) >= 2, 60)
        process.kill()
    with (out / "scores.jsonl").open("a") as file:
        file.write('{"path": "half a li')
    images.write(folder / "5.png", pictures[1].astype(np.float32) / 255)
    with command(bundle, *words, "--folder", str(tmp_path / "alarms"), "--page", "0") as process:
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
        address = said[1].rpartition("live page: ")[2].strip()
        until(lambda: len(lines(out)) == 6, 60)
        until(lambda: requests.get(f"{address}/state.json", timeout=10).json()["counts"]["scored"] >= 1)
        process.send_signal(signal.SIGTERM)
        told, more = process.communicate(timeout=30)
    assert process.returncode == 0, more
    assert "the last line was torn" in said[0]
    assert "6 alarms" not in told
    rows = [json.loads(line) for line in lines(out)]
    assert sorted(Path(row["path"]).name for row in rows) == [f"{number}.png" for number in range(6)]
    assert [row["decision"] for row in rows].count("defect") == 2
    assert any("5.png" in path.read_text() for path in (tmp_path / "alarms").glob("*.json"))
    assert "frames read" in told


def test_a_live_source_by_environment_and_ctrl_c(bundle: Path, pictures: list[np.ndarray]) -> None:
    def parts(number: int) -> Iterator[bytes]:
        while True:
            yield jpeg(pictures[0])
            time.sleep(0.05)

    with serving(mjpeg(parts, [])) as port:
        with command(bundle, PVQAE_SOURCE=f"http://me:hush@127.0.0.1:{port}/x") as process:
            assert process.stdout is not None
            row = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert row["source"] == f"http://127.0.0.1:{port}/x"
        assert f"http://127.0.0.1:{port}/x: " in said
        assert "hush" not in out + said
        assert "Traceback" not in said


@pytest.fixture
def here(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in this process, whose threads stay as they are."""
    monkeypatch.setattr(batch_cli, "prepare", lambda: None)
    return lambda *words: CliRunner().invoke(app, ["stream", str(bundle), *words])


def test_a_source_that_is_none_is_one_paragraph(here: Callable[..., Result]) -> None:
    done = here("gone.mp4")
    assert done.exit_code == 2
    assert done.stderr == "error: gone.mp4: expected a video or a folder of images, found none; correct the path\n"


@pytest.mark.parametrize(
    ("address", "changes", "text"),
    [
        ("s3://bucket/x", {}, "python -m flows stream"),
        ("77", {"patience": 0.0}, "camera 77: no frame within 0 s"),
        ("x", {"drop": "some"}, "--drop: expected oldest, newest, none"),
        ("x", {"ffmpeg": ("some",)}, "--ffmpeg: expected KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_told(detector: Detector, address: str, changes: dict[str, Any], text: str) -> None:
    options = stream_command.Options(
        out=None, folder=None, keep=1, webhook="", mqtt="", page=None, page_host="127.0.0.1", token_file=None, every=1,
        rate=0.0, drop="", queue=8, frames=0, poll=1.0, patience=30.0, ffmpeg=(),
    )  # fmt: skip
    with pytest.raises((ConfigError, DataError), match=text):
        stream_command.stream(detector, address, replace(options, **changes))


def test_frames_that_could_not_be_scored_are_exit_code_1(
    here: Callable[..., Result], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    small = [one[:4, :4] for one in pictures]
    done = here(str(video(tmp_path / "v.mkv", small)), "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "5 not scored (their rows say why)" in done.stdout


def test_lines_are_alone_on_stdout(here: Callable[..., Result], pictures: list[np.ndarray], tmp_path: Path) -> None:
    done = here(str(video(tmp_path / "v.mkv", pictures)), "--every", "2")
    assert done.exit_code == 0
    assert [json.loads(line)["frame"] for line in done.stdout.splitlines()] == [0, 2, 4]
    assert "5 frames read, 3 scored, 0 alarms, 0 dropped, 2 left out by --every or --rate" in done.stderr


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pvqae.stream import frames

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "v.mp4").write_bytes(b"x")
    for address in (str(tmp_path / "v.mp4"), "0", "rtsp://cam/x"):
        with pytest.raises(ConfigError, match=r"install pvqae\[stream\]"):
            frames.of(address, frames.Counts(), print, known=frames.Known())
    assert frames.of(str(tmp_path), frames.Counts(), print, known=frames.Known()).name == str(tmp_path)
    assert stream_command.SOURCE == "PVQAE_SOURCE"


@pytest.mark.parametrize("option", ["--out", "--folder"])
def test_a_file_in_place_of_a_folder_is_bad_input(
    here: Callable[..., Result], pictures: list[np.ndarray], tmp_path: Path, option: str
) -> None:
    source = video(tmp_path / "v.mkv", pictures)
    done = here(str(source), option, str(source))
    assert done.exit_code == 2
    assert f"{source}: expected a folder to write to, found: a file" in done.stderr
