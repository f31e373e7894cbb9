"""A broker of MQTT 3.1.1 for a test: takes clients, keeps what they publish, confirms it; and mosquitto where it is.

The packages with a broker in Python do not install beside our pins (amqtt wants another websockets).
"""

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CONNECT, PUBLISH, PING, DISCONNECT = 1, 3, 12, 14


@dataclass
class Broker:
    port: int = 0
    published: list[tuple[str, bytes]] = field(default_factory=list)
    users: list[tuple[str, str]] = field(default_factory=list)
    links: list[socket.socket] = field(default_factory=list)

    def drop(self) -> None:
        """End every connection, as a broker that restarts."""
        for link in self.links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self.links.clear()

    def serve(self, link: socket.socket) -> None:
        with suppress(OSError, EOFError), link, link.makefile("rb") as stream:
            while True:
                kind, body = packet(stream)
                if kind >> 4 == CONNECT:
                    self.users.append(credentials(body))
                    link.sendall(b"\x20\x02\x00\x00")
                elif kind >> 4 == PUBLISH:
                    length = struct.unpack("!H", body[:2])[0]
                    self.published.append((body[2 : 2 + length].decode(), body[4 + length :]))
                    link.sendall(b"\x40\x02" + body[2 + length : 4 + length])
                elif kind >> 4 == PING:
                    link.sendall(b"\xd0\x00")
                elif kind >> 4 == DISCONNECT:
                    return


def packet(stream) -> tuple[int, bytes]:  # type: ignore[no-untyped-def]
    head = stream.read(1)
    if not head:
        raise EOFError
    length, shift = 0, 0
    while True:
        byte = stream.read(1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return head[0], stream.read(length)


def credentials(body: bytes) -> tuple[str, str]:
    """User and password of a CONNECT without a will."""
    flags, rest, texts = body[7], body[10:], []
    while rest:
        length = struct.unpack("!H", rest[:2])[0]
        texts.append(rest[2 : 2 + length].decode())
        rest = rest[2 + length :]
    return (texts[1], texts[2]) if flags & 0xC0 == 0xC0 else ("", "")


@contextmanager
def running(port: int = 0) -> Iterator[Broker]:
    with socket.create_server(("127.0.0.1", port)) as server:
        broker = Broker(server.getsockname()[1])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    link, _ = server.accept()
                    broker.links.append(link)
                    threading.Thread(target=broker.serve, args=(link,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield broker
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            broker.drop()
            thread.join(5)


@contextmanager
def mosquitto(port: int) -> Iterator[None]:
    """The real one, without users."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert program
    with subprocess.Popen([program, "-p", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
