"""An S3 server on bad days: passes requests on to a real one, and does to each what a plan of faults says."""

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOWDOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please slow down.</Message></Error>"
BROKEN = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"
MISSING = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message></Error>"
ANSWERS = {"slowdown": (503, SLOWDOWN), "503": (503, b""), "broken": (500, BROKEN), "missing": (404, MISSING)}

# What may happen to the reading of an object.
OF_OBJECTS = ("slowdown", "broken", "stall", "cut", "short", "flip", "missing", "wrong etag", "wrong sha256", "reset")
# And to a listing. `hide` leaves keys out that are there already; `ghost` shows one that can't be read yet.
OF_LISTS = ("slowdown", "broken", "stall", "cut", "short", "garbage", "reset", "hide", "ghost")
GHOST = "ghost.png"


class FaultyS3(ThreadingHTTPServer):
    """In front of the server at the port `upstream`. Each reading of a key, and each listing, meets its next fault."""

    daemon_threads = True

    def __init__(self, upstream: int, stall: float) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.upstream, self.stall = upstream, stall
        self.of_key: dict[str, list[str]] = {}  # end of a key → the faults that its next readings meet
        self.of_lists: list[str] = []
        self.met: list[str] = []
        self._gate = threading.Lock()

    def next_fault(self, path: str) -> str:
        with self._gate:
            plan = self.of_lists if "list-type" in path else self.of_key.get(path.rpartition("/")[2], [])
            fault = plan.pop(0) if plan else ""
            self.met += [fault] if fault else []
            return fault


class Passing(BaseHTTPRequestHandler):
    server: FaultyS3

    def do_GET(self) -> None:
        self.close_connection = True
        fault = self.server.next_fault(self.path)
        if fault in ANSWERS:
            status, body = ANSWERS[fault]
            self._answer(status, [("Content-Type", "application/xml")], body)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
        else:
            if fault == "stall":
                time.sleep(self.server.stall)
            self._passed_on(fault)

    def _passed_on(self, fault: str) -> None:
        status, headers, body = self._upstream()
        if fault == "wrong etag":
            headers = [(key, '"' + "0" * 32 + '"' if key.lower() == "etag" else value) for key, value in headers]
            body = body[::-1]
        if fault == "wrong sha256":
            headers.append(("x-amz-meta-sha256", "0" * 64))
        if fault == "garbage":
            body = b"<html>captive portal"
        if fault == "short":  # a proxy that cut the body and made the length right again
            body = body[: len(body) // 2]
        if fault == "hide":
            body = _without_contents(body)
        if fault == "ghost":
            body = _with_ghost(body)
        length = len(body)
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        self._answer(status, headers, body[: length // 2] if fault == "cut" else body, length)

    def _upstream(self) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=20)
        try:
            connection.putrequest("GET", self.path, skip_host=True, skip_accept_encoding=True)
            for key, value in self.headers.items():  # with the Host that was signed
                connection.putheader(key, value)
            connection.endheaders()
            answer = connection.getresponse()
            hop = ("connection", "transfer-encoding", "content-length", "date", "server")
            kept = [(key, value) for key, value in answer.getheaders() if key.lower() not in hop]
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
        try:
            self.send_response(status)
            for key, value in headers:
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            return  # the client had enough

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""


def _without_contents(body: bytes) -> bytes:
    """A listing that does not show what was put last."""
    first, mark, _ = body.rpartition(b"<Contents>")
    return first + b"</ListBucketResult>" if mark else body


def _with_ghost(body: bytes) -> bytes:
    """A listing that shows a key which no reader finds."""
    first, mark, rest = body.partition(b"<Contents>")
    entry, end, others = rest.partition(b"</Contents>")
    if not mark:
        return body
    key, close, tail = entry.partition(b"</Key>")
    folder = key.rpartition(b"/")[0]
    return first + mark + folder + b"/" + GHOST.encode() + close + tail + end + mark + entry + end + others


@contextmanager
def in_front_of(upstream: int, stall: float) -> Iterator[FaultyS3]:
    with FaultyS3(upstream, stall) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def plan(rng: random.Random, kinds: tuple[str, ...], most: int) -> list[str]:
    """1 to `most` faults in a row."""
    return [rng.choice(kinds) for _ in range(rng.randint(1, most))]
