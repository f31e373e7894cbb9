"""What a source gives: videos, cameras over HTTP that break, watched folders; and what it never shows."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pvqae.core.errors import ConfigError, DataError
from pvqae.inference.bundle import Detector
from pvqae.samples import images
from pvqae.serving import batch_source
from pvqae.stream import frames
from pvqae.stream.frames import Counts, Known
from tests import ports
from tests.pvqae.stream.conftest import Run
from tests.videos import jpeg, mjpeg, of_jpegs, serving, video
from tests.waiting import until

pytest.importorskip("av", reason="PyAV is not installed: pip install 'pvqae[stream]'")
Streamed = Callable[..., Run]


def test_a_lossless_frame_has_the_score_of_the_same_pixels_in_a_file(
    streamed: Streamed, detector: Detector, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    for name, codec, pixels in (("a.mkv", "ffv1", "bgr0"), ("a.avi", "png", "rgb24")):
        run = streamed(str(video(tmp_path / name, pictures, codec, pixels)))
        assert [row["frame"] for row in run.rows] == [0, 1, 2, 3, 4]
        assert [row["decision"] for row in run.rows] == ["normal", "defect", "normal", "normal", "normal"]
        for row, picture in zip(run.rows, pictures, strict=True):
            images.write(tmp_path / "one.png", picture.astype(np.float32) / 255)
            assert row["score"] == pytest.approx(detector.score(tmp_path / "one.png").image_score, abs=1e-6)
    assert run.counts == Counts(read=5, scored=5, alarms=1)


def test_every_and_rate_leave_out_and_count(streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path) -> None:
    file = str(video(tmp_path / "v.mkv", pictures * 2, rate=10))
    run = streamed(file, every=3)
    assert [row["frame"] for row in run.rows] == [0, 3, 6, 9]
    assert (run.counts.read, run.counts.skipped, run.counts.scored) == (10, 6, 4)
    assert [row["frame"] for row in streamed(file, rate=5.0).rows] == [0, 2, 4, 6, 8]
    assert len(streamed(file, rate=100.0).rows) == 10


def test_a_video_without_frames_and_what_is_none(streamed: Streamed, tmp_path: Path) -> None:
    of_jpegs(tmp_path / "empty.avi", [])
    (tmp_path / "text.mp4").write_text("no video" * 100)
    (tmp_path / "nothing.mp4").touch()
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'empty.avi'}\n#EXT-X-ENDLIST\n")
    images.write(tmp_path / "one.png", np.zeros((16, 16, 3), dtype=np.float32))
    with pytest.raises(DataError, match="without any"):
        streamed(str(tmp_path / "empty.avi"))
    for name in ("text.mp4", "nothing.mp4", "list.mp4", "one.png"):
        with pytest.raises(DataError, match=f"{name}: expected a video"):
            streamed(str(tmp_path / name))
    with pytest.raises(DataError, match="found none"):
        streamed(str(tmp_path / "gone.mp4"))
    for address, said in (("s3://bucket/x", "flows stream"), ("ftp://host/x", "expected a camera")):
        with pytest.raises(ConfigError, match=said):
            streamed(address)


def test_a_cut_video_says_so_and_its_whole_frames_count(
    streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    parts = [jpeg(one) for one in pictures]
    parts[2] = parts[2][: len(parts[2]) // 2]
    run = streamed(str(of_jpegs(tmp_path / "v.avi", parts)))
    assert [row["decision"] for row in run.rows] == ["normal", "defect", "", "normal", "normal"]
    assert run.rows[2]["error"].startswith("expected a whole frame, found")
    assert (run.counts.scored, run.counts.failed) == (4, 1)


def test_a_file_that_ends_too_early_says_so(streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path) -> None:
    """FFmpeg itself takes the end of such a file for the end of its video."""
    frames = [np.roll(pictures[0], 3 * number, 1) for number in range(20)]
    for name in ("v.avi", "v.mkv", "v.mov", "v.mp4"):
        whole = streamed(str(video(tmp_path / name, frames, "mpeg4", "yuv420p")))
        assert (whole.counts.scored, whole.counts.failed) == (20, 0), name
    file = video(tmp_path / "cut.mkv", frames, "mjpeg", "yuvj420p")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    cut = streamed(str(file))
    assert 5 < cut.counts.scored < 15
    assert cut.counts.failed >= 1
    assert "expected 0.8 s of video, found" in cut.rows[-1]["error"]


def test_what_follows_lost_packets_is_not_scored_until_the_next_whole_picture(
    streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    file = video(
        tmp_path / "v.ts", [np.roll(pictures[0], 3 * number, 1) for number in range(30)], "mpeg2video", "yuv420p"
    )
    data = file.read_bytes()
    middle = len(data) // 188 // 2 * 188
    file.write_bytes(data[:middle] + data[middle + 5 * 188 :])
    run = streamed(str(file))
    wrong = [row["frame"] for row in run.rows if row["error"]]
    assert wrong
    assert wrong == list(range(wrong[0], wrong[-1] + 1))
    assert 5 < wrong[0] <= wrong[-1] < 28  # a picture that stands on its own comes every 12


def test_another_resolution_in_mid_stream(streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path) -> None:
    wide = [one[:96] for one in pictures]
    parts = [jpeg(one) for one in (*pictures[:2], *wide[:2])]
    run = streamed(str(of_jpegs(tmp_path / "v.avi", parts)))
    assert [result.frame.pixels.shape for result in run.results] == [(128, 128, 3)] * 2 + [(96, 128, 3)] * 2
    assert all(row["score"] is not None for row in run.rows)


def test_a_camera_that_breaks_is_opened_again_and_its_password_is_not_shown(
    streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    opened: list[str] = []

    def parts(number: int) -> Iterator[bytes]:
        yield from (jpeg(one) for one in pictures[:3])

    with serving(mjpeg(parts, opened)) as port:
        run = streamed(
            f"http://me:hush-word@127.0.0.1:{port}/live?key=hush-key", limit=7, drop="none", out=tmp_path / "out"
        )
    assert len(opened) >= 3
    assert opened[0].startswith("Basic ")
    assert run.counts.reconnects >= 2
    assert [row["frame"] for row in run.rows] == list(range(7))
    assert sum("back after" in line for line in run.said) >= 2
    assert run.rows[0]["source"] == f"http://127.0.0.1:{port}/live?…"
    assert run.rows[0]["taken"].startswith("20")
    assert "hush" not in str(run.said) + (tmp_path / "out" / "scores.jsonl").read_text()


def test_a_video_from_a_web_server_is_read_once_and_whole(
    streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    video(tmp_path / "v.mkv", pictures * 4)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with serving(partial(Quiet, directory=str(tmp_path))) as port:
        run = streamed(f"http://127.0.0.1:{port}/v.mkv", queue=1)
    assert [row["frame"] for row in run.rows] == list(range(20))
    assert (run.counts.dropped, run.counts.reconnects, run.rows[0]["taken"]) == (0, 0, "")


PUSH = """
import sys, time, av, numpy as np
base = (np.random.default_rng(1).random((128, 128, 3)) * 200).astype(np.uint8)
def push():
    with av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "5", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for number in range(10_000):
            frame = av.VideoFrame.from_ndarray(np.roll(base, number, 1), format="rgb24")
            container.mux(stream.encode(frame))
while True:
    try:
        push()
    except av.FFmpegError:  # nobody listens yet
        time.sleep(0.1)
"""


def test_rtsp_with_h264(streamed: Streamed) -> None:
    """A camera that sends by itself, in a process of its own: PyAV's writer holds the interpreter while it waits."""
    with ports.held() as port:
        address = f"rtsp://127.0.0.1:{port}/line"
        with subprocess.Popen([sys.executable, "-c", PUSH, address], stderr=subprocess.DEVNULL) as camera:
            try:
                run = streamed(address, limit=12, options={"rtsp_flags": "listen", "listen_timeout": "20"})
            finally:
                camera.kill()
    assert run.counts.scored == 12
    assert run.counts.failed == 0
    assert run.rows[-1]["source"] == address


def test_a_camera_that_falls_silent_is_opened_again(streamed: Streamed, pictures: list[np.ndarray]) -> None:
    silent = threading.Event()

    def parts(number: int) -> Iterator[bytes]:
        yield from (jpeg(one) for one in pictures)
        if number == 0:
            silent.wait(20)

    with serving(mjpeg(parts, [])) as port:
        run = streamed(f"http://me:hush@127.0.0.1:{port}/", limit=8, drop="none", timeout=0.7)
        silent.set()
    assert run.counts.scored == 8
    assert run.counts.reconnects >= 1


def test_a_source_that_never_opens(streamed: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    with ports.held() as port:
        for address in (f"rtsp://me:hush@127.0.0.1:{port}/x", f"http://me:hush@127.0.0.1:{port}/x", "63"):
            clock = iter([0.0] * 4 + [math.inf])  # the time is up after some attempts, however long they take
            monkeypatch.setattr(frames, "time", SimpleNamespace(monotonic=clock.__next__))
            with pytest.raises(DataError, match=r"no frame within 0.2 s, the last time: \w") as error:
                streamed(address, patience=0.2, run=run)
            assert "hush" not in f"{error.value} {run.said}"
    assert len(run.said) == 3  # each outage is told once


def test_a_camera_whose_pictures_are_all_torn_is_given_up(streamed: Streamed, pictures: list[np.ndarray]) -> None:
    def parts(number: int) -> Iterator[bytes]:
        yield from (jpeg(one)[:2000] for one in pictures * 3)

    with serving(mjpeg(parts, [])) as port, pytest.raises(DataError, match=r"no frame within 0\.5 s") as error:
        streamed(f"http://me:hush@127.0.0.1:{port}/", patience=0.5)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://me:secret@cam:554/one", "rtsp://cam:554/one"),
        ("rtsp://me:sec@ret@cam/one", "rtsp://cam/one"),
        ("rtsp://me:sec/ret@cam/one", "rtsp://…"),
        ("http://cam/x?user=me&pwd=secret", "http://cam/x?…"),
        ("videos/a.mp4", "videos/a.mp4"),
    ],
)
def test_what_an_address_shows(address: str, name: str) -> None:
    assert frames.shown(address) == name


def watching(folder: Path, run: Run, streamed: Streamed, **more: object) -> threading.Thread:
    thread = threading.Thread(target=lambda: streamed(str(folder), run=run, poll=0.05, **more), daemon=True)
    thread.start()
    return thread


def aged(path: Path, picture: np.ndarray) -> None:
    """An image that was written a while ago; who watches the folder never sees it younger."""
    hidden = path.with_name(f".{path.name}")
    images.write(hidden, picture.astype(np.float32) / 255)
    os.utime(hidden, (time.time() - 60, time.time() - 60))
    hidden.replace(path)


def test_a_watched_folder_scores_what_arrives_once(
    streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    folder, run = tmp_path / "in", Run()
    aged(folder / "0.png", pictures[0])
    thread = watching(folder, run, streamed, out=tmp_path / "out")
    until(lambda: run.counts.scored == 1)
    aged(folder / "deep" / "1.png", pictures[1])
    (folder / "2.png").write_bytes(b"no image")
    until(lambda: run.counts.read == 3 and len(run.rows) == 3)
    (folder / "notes.txt").write_text("no image, no row")
    time.sleep(0.2)
    run.stop.set()
    thread.join(10)
    assert {Path(row["path"]).name: row["decision"] for row in run.rows} == {
        "0.png": "normal", "1.png": "defect", "2.png": "",
    }  # fmt: skip
    again = Run()
    aged(folder / "3.png", pictures[2])
    aged(folder / "0.png", pictures[1])  # another content
    thread = watching(folder, again, streamed, out=tmp_path / "out")
    until(lambda: again.counts.scored == 2)
    time.sleep(0.2)
    again.stop.set()
    thread.join(10)
    assert sorted(Path(row["path"]).name for row in again.rows) == ["0.png", "3.png"]
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 5


def test_an_image_is_taken_when_it_is_whole(
    streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = tmp_path / "in", Run()
    aged(tmp_path / "0.png", pictures[0])
    data = (tmp_path / "0.png").read_bytes()
    folder.mkdir()
    rest = [data[start : start + len(data) // 8] for start in range(0, len(data), len(data) // 8)]
    look = batch_source.Files.items

    def growing(files: batch_source.Files) -> Iterator[batch_source.Item]:
        if rest:  # some of it is written between any two looks
            with (folder / "0.png").open("ab") as file:
                file.write(rest.pop(0))
        return look(files)

    monkeypatch.setattr(batch_source.Files, "items", growing)
    thread = watching(folder, run, streamed)
    until(lambda: run.counts.read >= 1)
    run.stop.set()
    thread.join(10)
    assert [row["error"] for row in run.rows] == [""]


def test_a_folder_that_goes_away_comes_back(streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path) -> None:
    folder, run = tmp_path / "in", Run()
    aged(folder / "0.png", pictures[0])
    thread = watching(folder, run, streamed)
    until(lambda: run.counts.scored == 1)
    shutil.move(folder, tmp_path / "away")
    until(lambda: any("opened again" in line for line in run.said))
    shutil.move(tmp_path / "away", folder)
    aged(folder / "1.png", pictures[1])
    until(lambda: run.counts.scored == 2)
    run.stop.set()
    thread.join(10)
    assert run.counts.reconnects == 1


def test_rates_are_refused_where_every_image_counts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every image that arrives is scored"):
        frames.of(str(tmp_path), Counts(), print, known=Known(), rate=2.0)


def test_a_video_goes_on_behind_the_last_line(streamed: Streamed, pictures: list[np.ndarray], tmp_path: Path) -> None:
    file, out = str(video(tmp_path / "v.mkv", pictures * 2)), tmp_path / "out"
    assert streamed(file, out=out, limit=4).counts.scored == 4
    path = out / "scores.jsonl"
    path.write_bytes(path.read_bytes()[:-25])  # killed while it wrote
    run = streamed(file, out=out)
    assert [row["frame"] for row in run.rows] == list(range(3, 10))
    assert run.counts.known == 3
    assert "the last line was torn" in run.said[0]
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == list(range(10))
    assert streamed(file, out=out).counts.scored == 0
