"""Where results go: lines of JSON, a folder with the pictures of alarms, a webhook, MQTT.

The lines are written first. What leaves this machine waits in a queue of its own with a bound: a server that does not
answer holds up no frame, and what it did not get is counted.
"""

import contextlib
import hashlib
import hmac
import json
import os
import queue
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import requests
from urllib3.util import Retry

from pvqae.core import files
from pvqae.core.errors import ConfigError, DataError
from pvqae.inference.bundle import Detector
from pvqae.inference.scoring import Scored
from pvqae.report import pictures
from pvqae.serving import batch, batch_rows
from pvqae.serving.batch_rows import Values
from pvqae.stream.frames import EXTRA, Frame, Known, Tell, shown

SECRET, USER, PASSWORD = "PVQAE_WEBHOOK_SECRET", "PVQAE_MQTT_USER", "PVQAE_MQTT_PASSWORD"
SIGNATURE, TIMESTAMP = "X-Pvqae-Signature", "X-Pvqae-Timestamp"
_SHORTEST = 16  # characters of a secret
_WAITING = 100  # alarms that wait for a server
_SECONDS = 10.0  # for which a request, and at the end of a run all that waits, is waited
_TAIL = 2**20  # bytes: longer than any line
_SYNC = 1.0  # seconds between two syncs of the lines to the disk


@dataclass(frozen=True, eq=False)
class Result:
    """A frame's row; `scored` is None where it could not be scored."""

    row: Values
    frame: Frame
    scored: Scored | None

    @property
    def alarm(self) -> bool:
        return bool(self.row["decision"] == "defect")


class Sink(Protocol):
    """Takes every result. What it could not deliver is in `failed`, and `said` tells it in words at the end."""

    failed: int

    def put(self, result: Result) -> None: ...
    def close(self) -> None: ...
    def said(self) -> str: ...


class Lines:
    """Appends rows to `folder`/scores.jsonl, or prints them. One process at a time; a torn last line is repaired."""

    failed = 0

    def __init__(self, folder: Path | None, tell: Tell) -> None:
        self.path = folder / batch_rows.JSONL if folder else None
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()
        if self.path:
            files.make_folder(self.path.parent)
            self._file = self.path.open("ab+")
            try:
                _lock(self._file, self.path)
                _mend(self._file, self.path, tell)
            except BaseException:
                self._file.close()
                raise

    def known(self, bundle_sha256: str) -> Known:
        """Return what earlier runs scored with this bundle. Raises `DataError` for a file that is no stream's."""
        found = Known()
        if self.path is None:
            return found
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    own = row["bundle_sha256"] == bundle_sha256
                    row["frame"], row["path"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise DataError(
                        f"{self.path}, line {number}: expected a frame's scores, found something else; give --out "
                        "another folder, or move the file away"
                    ) from None
                if own:
                    found.add(row)
        return found

    def put(self, result: Result) -> None:
        line = batch_rows.as_json(result.row) + "\n"
        if self._file is None:
            sys.stdout.write(line)
            sys.stdout.flush()
            return
        self._file.write(line.encode())
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC:
            self._sync()

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        if self._file:
            self._sync()
            self._file.close()

    def said(self) -> str:
        return f"lines: {self.path}" if self.path else ""


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold the file for this process. Raises `ConfigError` if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{path}: another run writes to it; stop that one, or give --out another folder") from None


def _mend(file: BinaryIO, path: Path, tell: Tell) -> None:
    """Cut off a last line that a kill has left half written: its frame is scored again."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL))
    tail = file.read()
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        file.truncate(end - torn)
        tell(f"{path}: the last line was torn ({torn} bytes) and is cut off; its frame counts as not scored")


class AlarmFolder:
    """Writes image, heatmap and mask of each alarm, and deletes the oldest beyond `keep` alarms; other files stay."""

    failed = 0
    _NAME = re.compile(r"(\d{8}T\d{9}Z-\d{8})(?:-heatmap\.webp|-mask\.png|\.png|\.json)")

    def __init__(self, folder: Path, keep: int, detector: Detector) -> None:
        files.make_folder(folder)
        self._folder, self._keep, self._detector, self._written = folder, keep, detector, 0
        found = (self._NAME.fullmatch(path.name) for path in folder.iterdir())
        self._alarms = deque(sorted({one[1] for one in found if one}))
        self._tidy()

    def put(self, result: Result) -> None:
        if not result.alarm or result.scored is None:
            return
        stem = f"{re.sub(r'[-:.]', '', str(result.row['time']))}Z-{result.frame.number:08}"
        for name, data in self._files(result, result.scored):
            with files.whole_file(self._folder / f"{stem}{name}") as part:
                part.write_bytes(data)
        self._alarms.append(stem)
        self._written += 1
        self._tidy()

    def _files(self, result: Result, scored: Scored) -> Iterator[tuple[str, bytes]]:
        yield ".png", pictures.png((result.frame.floats * 255).round().astype("uint8"))
        yield "-heatmap.webp", pictures.webp(batch.heatmap(self._detector, scored))
        if marked := batch.mask(self._detector, scored):
            yield "-mask.png", marked
        yield ".json", (batch_rows.as_json(result.row) + "\n").encode()

    def _tidy(self) -> None:
        while len(self._alarms) > self._keep:
            stem = self._alarms.popleft()
            for name in (".png", "-heatmap.webp", "-mask.png", ".json"):
                (self._folder / f"{stem}{name}").unlink(missing_ok=True)

    def close(self) -> None: ...

    def said(self) -> str:
        return f"{self._written} alarms in {self._folder}, the newest {self._keep} are kept"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of the signature's header: HMAC-SHA256 over the timestamp, a full stop and the body."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """POSTs each alarm's row as JSON, signed where there is a secret; tried again for what a server may get over."""

    def __init__(self, url: str, tell: Tell, environ: Mapping[str, str] = os.environ, pause: float = 0.5) -> None:
        secret = environ.get(SECRET, "")
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"--webhook: expected http://... or https://..., found {shown(url)}")
        if secret and len(secret) < _SHORTEST:
            raise ConfigError(f"{SECRET}: expected at least {_SHORTEST} characters, found {len(secret)}")
        if not secret:
            tell(f"webhook: not signed, {SECRET} is not set")
        self._url, self._secret, self._tell = url, secret, tell
        self.sent = self.failed = 0
        self._ill = ""  # why the last one failed: told when it changes
        self._session = requests.Session()
        # At once, then after 1, 2, 4, 8 s. A server's own Retry-After could be hours.
        again = Retry(
            total=5, backoff_factor=pause, status_forcelist=(408, 425, 429, 500, 502, 503, 504), allowed_methods=None,
            respect_retry_after_header=False, raise_on_status=False,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=again))
        self._queue: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def put(self, result: Result) -> None:
        if not result.alarm:
            return
        try:
            self._queue.put_nowait(batch_rows.as_json(result.row).encode())
        except queue.Full:
            self._fail(f"{_WAITING} alarms wait already")

    def _fail(self, reason: str) -> None:
        self.failed += 1
        if reason != self._ill:
            self._tell(f"webhook {shown(self._url)}: not delivered: {reason}")
            self._ill = reason

    def _work(self) -> None:
        while (body := self._queue.get()) is not None:
            stamp = str(int(time.time()))
            headers = {"Content-Type": "application/json", TIMESTAMP: stamp}
            if self._secret:
                headers[SIGNATURE] = signature(self._secret, stamp, body)
            try:
                found = self._session.post(
                    self._url, data=body, headers=headers, timeout=_SECONDS, allow_redirects=False, stream=True
                )
                found.close()
            except requests.RequestException as error:  # its text has the address
                self._fail(type(error).__name__)
                continue
            if found.ok and not found.is_redirect:
                self.sent, self._ill = self.sent + 1, ""
            else:
                self._fail(f"status {found.status_code}")

    def close(self) -> None:
        """Wait a little for what is on its way; the rest counts as failed."""
        end = time.monotonic() + _SECONDS
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_SECONDS)
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            with self._queue.mutex:
                self.failed += 1 + sum(one is not None for one in self._queue.queue)

    def said(self) -> str:
        return f"webhook: {self.sent} delivered, {self.failed} not"


class Mqtt:
    """Publishes each alarm's row as JSON, at least once, to a broker: `[mqtt[s]://]HOST[:PORT]/TOPIC`."""

    def __init__(self, address: str, tell: Tell, environ: Mapping[str, str] = os.environ) -> None:
        try:
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise ConfigError(f"--mqtt: the package paho-mqtt is missing; {EXTRA}") from None
        host, port, secure, self._topic = _broker(address)
        self._name, self._tell, self._up, self._words = f"{host}:{port}", tell, False, ""
        self.sent = self.failed = self._asked = 0
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(_WAITING)
        self._client.reconnect_delay_set(1, 30)
        if user := environ.get(USER):
            self._client.username_pw_set(user, environ.get(PASSWORD))
        if secure:
            self._client.tls_set()
        self._client.on_connect = self._connected
        self._client.on_connect_fail = lambda *_: self._note(False, "can't be reached")
        self._client.on_disconnect = lambda *_: self._note(False, "the connection ended")
        self._client.on_publish = self._published
        self._lock = threading.Lock()
        self._client.connect_async(host, port, keepalive=30)
        self._client.loop_start()

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._note(False, f"refused: {reason}")
        else:
            self._note(True, "connected")

    def _note(self, up: bool, words: str) -> None:
        if (up, words) != (self._up, self._words):
            self._up, self._words = up, words
            self._tell(f"mqtt {self._name}: {words}")

    def _published(self, *_: Any) -> None:
        with self._lock:
            self.sent += 1

    def put(self, result: Result) -> None:
        if not result.alarm:
            return
        found = self._client.publish(self._topic, batch_rows.as_json(result.row), qos=1)
        if found.rc in (0, 4):  # 4: not connected now, it waits
            self._asked += 1
        else:
            self.failed += 1

    def close(self) -> None:
        """Wait a little for the broker's confirmations; what has none counts as failed."""
        end = time.monotonic() + _SECONDS
        while self._unconfirmed() and self._up and time.monotonic() < end:
            time.sleep(0.05)
        self.failed += self._unconfirmed()
        self._client.on_disconnect = None
        self._client.disconnect()
        self._client.loop_stop()

    def _unconfirmed(self) -> int:
        return self._asked - self.sent

    def said(self) -> str:
        return f"mqtt: {self.sent} delivered, {self.failed} not"


def _broker(address: str) -> tuple[str, int, bool, str]:
    """Return host, port, whether by TLS, and topic. Raises `ConfigError` for another form."""
    full = address if "://" in address else f"mqtt://{address}"
    try:
        parts = urlsplit(full)
        host, port, topic = parts.hostname, parts.port, parts.path.strip("/")
    except ValueError:
        host, port, topic = None, None, ""
        parts = urlsplit("mqtt://")
    wrong = parts.scheme not in ("mqtt", "mqtts") or not host or not topic or "+" in topic or "#" in full
    if wrong or parts.username is not None:
        raise ConfigError(
            f"--mqtt: expected HOST[:PORT]/TOPIC or mqtts://HOST[:PORT]/TOPIC without wildcards, the user and the "
            f"password in {USER} and {PASSWORD}; found {shown(full)}"
        )
    assert host is not None
    secure = parts.scheme == "mqtts"
    return host, port or (8883 if secure else 1883), secure, topic
