"""What leaves a stream: lines, pictures of alarms, signed webhooks with retries, MQTT through a broker."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pvqae.core.errors import ConfigError, DataError
from pvqae.inference.bundle import Detector
from pvqae.serving import batch_rows
from pvqae.stream import sinks
from pvqae.stream.sinks import PASSWORD, SECRET, SIGNATURE, TIMESTAMP, USER
from tests import mqtt_broker, ports
from tests.pvqae.stream.conftest import Run
from tests.videos import serving, video
from tests.waiting import until

pytest.importorskip("av", reason="PyAV is not installed: pip install 'pvqae[stream]'")
Streamed = Callable[..., Run]
KEY = "a-key-of-the-tests-0123"


@pytest.fixture(scope="module")
def file(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six frames, of which 1, 2 and 4 are alarms."""
    odd, good = pictures[1], pictures[0]
    return str(video(tmp_path_factory.mktemp("videos") / "v.mkv", [good, odd, odd, good, odd, good]))


def test_lines_have_the_words_of_scores_jsonl(
    streamed: Streamed, file: str, detector: Detector, tmp_path: Path
) -> None:
    run = streamed(file, out=tmp_path)
    rows = list(batch_rows.read(tmp_path))  # what `pvqae drift` reads
    assert rows == json.loads(json.dumps(run.rows))
    own = {"time", "source", "frame", "seconds", "identity", "dropped"}
    assert set(rows[0]) == own | set(batch_rows.of(detector, "", "", "", "", {"error": ""}))
    assert rows[1]["regions"]
    assert [row["seconds"] for row in rows[:3]] == pytest.approx([0, 0.04, 0.08])
    assert all(row["bundle_sha256"] == detector.sha256 and row["source"] == file for row in rows)


def test_another_bundle_scores_again_and_what_is_no_stream_stays(
    streamed: Streamed, file: str, detector: Detector, tmp_path: Path
) -> None:
    streamed(file, out=tmp_path)
    lines = sinks.Lines(tmp_path, print)
    assert lines.known("0" * 64).last == {}
    assert list(lines.known(detector.sha256).last.values()) == [5]
    with pytest.raises(ConfigError, match="another run writes to it"):
        sinks.Lines(tmp_path, print)
    lines.close()
    other = tmp_path / "other"
    other.mkdir()
    (other / "scores.jsonl").write_text('{"path": "a.png"}\n')
    foreign = sinks.Lines(other, print)
    with pytest.raises(DataError, match="line 1: expected a frame's scores"):
        foreign.known(detector.sha256)
    foreign.close()
    assert (other / "scores.jsonl").read_text() == '{"path": "a.png"}\n'


def test_the_folder_keeps_the_newest_alarms_and_other_files(
    streamed: Streamed, file: str, detector: Detector, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "alarms"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    streamed(file, more=[sinks.AlarmFolder(folder, 2, detector)])
    stems = sorted(path.stem for path in folder.glob("*.json"))
    assert [stem[-8:] for stem in stems] == ["00000002", "00000004"]
    assert len(list(folder.iterdir())) == 1 + 2 * 4
    with Image.open(folder / f"{stems[0]}.png") as image, Image.open(folder / f"{stems[0]}-mask.png") as mask:
        assert np.array_equal(np.asarray(image), pictures[1])
        assert mask.size == (128, 128)
    assert json.loads((folder / f"{stems[1]}.json").read_text())["decision"] == "defect"
    sinks.AlarmFolder(folder, 1, detector)  # a restart with less to keep
    assert sorted(path.name for path in folder.iterdir())[-1] == "notes.txt"
    assert len(list(folder.iterdir())) == 1 + 4


class Receiver:
    """Answers with the next of `codes`, then 200."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.got = list(codes), []
        outer: Any = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.headers, body))
                self.send_response(outer.codes.pop(0) if outer.codes else 200)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.handler = Handler


def test_a_webhook_is_signed_and_tried_again(streamed: Streamed, file: str, tmp_path: Path) -> None:
    receiver, said = Receiver(503, 500), []
    with serving(receiver.handler) as port:
        hook = sinks.Webhook(f"http://127.0.0.1:{port}/x?key=hush", said.append, {SECRET: KEY}, pause=0.01)
        run = streamed(file, more=[hook])
        hook.close()
    assert (hook.sent, hook.failed, said) == (3, 0, [])
    assert len(receiver.got) == 5
    bodies = [json.loads(body) for _, body in receiver.got]
    assert [body["frame"] for body in bodies] == [1, 1, 1, 2, 4]
    assert bodies[-1] == json.loads(json.dumps(run.rows[4]))
    for headers, body in receiver.got:
        assert headers[SIGNATURE] == sinks.signature(KEY, headers[TIMESTAMP], body)
        assert abs(int(headers[TIMESTAMP]) - time.time()) < 60
    # What a receiver computes with a common library: the page shows it.
    import hashlib
    import hmac

    stamp, body = receiver.got[0][0][TIMESTAMP], receiver.got[0][1]
    expected = hmac.new(KEY.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert receiver.got[0][0][SIGNATURE] == f"sha256={expected}"


def test_what_a_webhook_refuses_is_counted_and_told_once(streamed: Streamed, file: str) -> None:
    for codes in ((400, 400, 400), (302, 302, 302)):
        receiver, said = Receiver(*codes), []
        with serving(receiver.handler) as port:
            hook = sinks.Webhook(f"http://127.0.0.1:{port}/x?key=hush", said.append, {}, pause=0.01)
            streamed(file, more=[hook])
            hook.close()
        assert (hook.sent, hook.failed, len(receiver.got)) == (0, 3, 3)
        assert SIGNATURE not in receiver.got[0][0]
        assert said == [
            f"webhook: not signed, {SECRET} is not set",
            f"webhook http://127.0.0.1:{port}/x?…: not delivered: status {codes[0]}",
        ]


def test_a_webhook_that_hangs_holds_up_no_frame(streamed: Streamed, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_SECONDS", 0.3)
    monkeypatch.setattr(sinks, "_WAITING", 1)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hook = sinks.Webhook(f"http://127.0.0.1:{deaf.getsockname()[1]}/", said.append, {SECRET: KEY}, pause=5)
        start = time.monotonic()
        assert streamed(file, more=[hook]).counts.scored == 6
        hook.close()
        assert time.monotonic() - start < 5
    assert (hook.sent, hook.failed) == (0, 3)


def test_secrets_and_addresses_that_are_none() -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        sinks.Webhook("http://127.0.0.1/", print, {SECRET: "short"})
    with pytest.raises(ConfigError, match="--webhook"):
        sinks.Webhook("ftp://127.0.0.1/", print, {})
    for address in ("host", "host/a/#", "host/+/b", "me:hush@host/a", "http://host/a", "host:x/a", "/a"):
        with pytest.raises(ConfigError, match="--mqtt: expected") as error:
            sinks.Mqtt(address, print, {})
        assert "hush" not in str(error.value)


def test_mqtt_reaches_a_broker_that_goes_away_and_comes_back(streamed: Streamed, file: str) -> None:
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed: pip install 'pvqae[stream]'")
    said: list[str] = []
    with mqtt_broker.running() as broker:
        client = sinks.Mqtt(f"127.0.0.1:{broker.port}/line/1", said.append, {USER: "me", PASSWORD: "hush"})
        run = streamed(file, more=[client])
        until(lambda: client.sent == 3)  # what is not confirmed is sent again
        broker.drop()
        until(lambda: any("ended" in line for line in said))
        client.put(run.results[1])  # it waits until the broker is back
        until(lambda: client.sent == 4)
        client.close()
    assert (client.sent, client.failed) == (4, 0)
    assert {topic for topic, _ in broker.published} == {"line/1"}
    assert [json.loads(data)["frame"] for _, data in broker.published] == [1, 2, 4, 1]
    assert broker.users[0] == ("me", "hush")
    assert "hush" not in str(said)


def test_alarms_for_a_broker_that_never_comes_are_counted(streamed: Streamed, file: str) -> None:
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed: pip install 'pvqae[stream]'")
    said: list[str] = []
    with ports.held() as port:
        client = sinks.Mqtt(f"127.0.0.1:{port}/x", said.append, {})
        streamed(file, more=[client])
        until(lambda: bool(said))  # its thread has tried
        client.close()
    assert (client.sent, client.failed) == (0, 3)
    assert said == [f"mqtt 127.0.0.1:{port}: can't be reached"]


def test_mqtt_reaches_mosquitto(streamed: Streamed, file: str) -> None:
    if not shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin"):
        pytest.skip("no mosquitto: apt-get install mosquitto")
    with ports.held() as port, mqtt_broker.mosquitto(port):
        client = sinks.Mqtt(f"127.0.0.1:{port}/line", print, {})
        streamed(file, more=[client])
        until(lambda: client.sent == 3)  # the broker may be up later than the frames are scored
        client.close()
    assert (client.sent, client.failed) == (3, 0)
