"""`pvqae <verb>` as a fork of a process that has imported what the stages need, where one waits.

Imports are two of the seconds of a stage, three of a validation. A flow starts `python -m pvqae.cli.forkserver SOCKET`
in its workspace; `pvqae train brick`, which DVC runs as ever, hands its arguments, environment and open files over and
ends as the fork ends. Where nobody listens, it does the work itself: the same code, the same files.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ADDRESS = "PVQAE_FORKSERVER"  # its socket, relative to the workspace: an address can't be longer than 107 bytes
STREAMS = (0, 1, 2)
LENGTH = 8  # bytes
SIGNALLED = 128  # added to the number of the signal that ended a process, as shells do
# What the stages import once they run.
NEEDED = (
    "pvqae.cli.main",
    "pvqae.datasets.validation",
    "pvqae.training.network",
    "pvqae.prior.learn",
    "pvqae.calibration.calibrate",
    "pvqae.export.parity",
    "pvqae.evaluation.stage",
    "pvqae.report.report",
    "torch._dynamo",  # of every optimizer, a second
)


def ask(arguments: Sequence[str]) -> int | None:
    """The exit code of `pvqae ARGUMENTS` in a fork of the process that listens; None where none does."""
    address = os.environ.pop(ADDRESS, "")
    if not address:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found:
        try:
            found.connect(address)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # it was killed
            send(found, {"arguments": list(arguments), "environ": dict(os.environ), "folder": str(Path.cwd())})
            if answer := found.recv(1):
                return answer[0]
    print(f"error: the process of `pvqae {' '.join(arguments)}` was killed", file=sys.stderr, flush=True)
    return SIGNALLED + signal.SIGKILL


def send(given: socket.socket, request: dict[str, Any]) -> None:
    """A request with this process's open streams."""
    text = json.dumps(request).encode()
    socket.send_fds(given, [len(text).to_bytes(LENGTH, "big")], STREAMS)
    given.sendall(text)


def serve(address: str, validates: bool) -> NoReturn:
    """Listen on `address` and import, fork for whoever asks. Only this user may. Ends with the process that started it.

    `validates`: a stage will need Great Expectations, too; it is the first to come. Who asks before all is imported
    waits for the import that is under way, and does the others in its fork.
    """
    if validates:
        from pvqae.datasets import validation

        with contextlib.suppress(ImportError):  # an extra that is not installed: the stage says so
            validation.great_expectations()
    listener = listen(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    for name in NEEDED:
        importlib.import_module(name)
        while accept(listener, 0):
            pass
    gc.collect()
    gc.freeze()  # pages that no collection writes to stay shared with the forks
    parent = os.getppid()
    while os.getppid() == parent:
        accept(listener, 1.0)
    os._exit(0)


def accept(listener: socket.socket, seconds: float) -> bool:
    """Fork for the next who asks; False if nobody does for `seconds`."""
    if not select.select([listener], [], [], seconds)[0]:
        return False
    given, _ = listener.accept()
    if not os.fork():
        attend(given)
    given.close()
    return True


def listen(address: str) -> socket.socket:
    """A socket that appears under its name when it can be asked."""
    beside = f"{address}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o077)
    listener.bind(beside)
    os.umask(before)
    listener.listen(64)
    os.replace(beside, address)
    return listener


def attend(given: socket.socket) -> NoReturn:
    """Run what is asked in a fork of its own, tell how it ended; who asked and died takes it along."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams = receive(given)
    worker = os.fork()
    if not worker:
        given.close()
        run(request, streams)
    for stream in streams:
        os.close(stream)
    threading.Thread(target=end_with, args=(given, worker), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(OSError):
        given.sendall(bytes([code if code >= 0 else SIGNALLED - code]))
    os._exit(0)


def receive(given: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What `send` has sent: the request, and the streams by their numbers here."""
    length, streams, _, _ = socket.recv_fds(given, LENGTH, len(STREAMS))
    with given.makefile("rb") as file:
        request: dict[str, Any] = json.loads(file.read(int.from_bytes(length, "big")))
    return request, streams


def end_with(given: socket.socket, worker: int) -> None:
    if not given.recv(1):
        os.kill(worker, signal.SIGKILL)


def run(request: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Become `pvqae` as it was asked for."""
    for number, stream in zip(STREAMS, streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    sys.argv = ["pvqae", *request["arguments"]]
    try:
        from pvqae.cli import main

        main.main()  # ends the process itself
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], "validates" in sys.argv[2:])
