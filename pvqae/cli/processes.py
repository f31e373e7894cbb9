"""Processes of stages: each ends with the flow that started it, and is a fork of one that has imported the libraries.

Imports are two of the seconds of a stage, three of a validation. A flow starts `python -m pvqae.cli.main fork-server
SOCKET` in its workspace; `pvqae train brick`, which DVC runs as ever, hands its arguments, environment and open files
over and ends as the fork ends. Where nobody listens, it does the work itself: the same code, the same files.
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
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

FLOW = "PVQAE_SUPERVISOR"  # pid of the flow that started this process, set by it
ADDRESS = "PVQAE_FORKSERVER"  # the fork server's socket, relative to the workspace: an address has at most 107 bytes
_STREAMS = (0, 1, 2)
_LENGTH = 8  # bytes
_SIGNALLED = 128  # added to the number of the signal that ended a process, as shells do
# What the stages import once they run.
_NEEDED = (
    "pvqae.datasets.validation",
    "pvqae.training.network",
    "pvqae.prior.learn",
    "pvqae.calibration.calibrate",
    "pvqae.export.parity",
    "pvqae.evaluation.stage",
    "pvqae.report.report",
    "torch._dynamo",  # of every optimizer, a second
)


def end_with_flow(seconds: float = 0.5) -> None:
    """Watch the flow named in the environment, if there is one, and end this process when it is gone."""
    pid = os.environ.get(FLOW, "")
    if pid.isdigit():
        threading.Thread(target=_watch, args=(int(pid), seconds), daemon=True).start()


def _watch(pid: int, seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        while True:
            with contextlib.suppress(PermissionError):  # it lives, as another user's
                os.kill(pid, 0)
            time.sleep(seconds)
    os._exit(143)  # the checkpoint on disk is whole: it was renamed into place


def ask(arguments: Sequence[str]) -> int | None:
    """Have `pvqae ARGUMENTS` done by a fork server; return the exit code, None where no server listens."""
    address = os.environ.pop(ADDRESS, "")
    if not address:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.connect(address)
        except OSError:
            return None
        request = {"arguments": list(arguments), "environ": dict(os.environ), "folder": str(Path.cwd())}
        text = json.dumps(request).encode()
        with contextlib.suppress(OSError):  # it was killed
            socket.send_fds(server, [len(text).to_bytes(_LENGTH, "big")], _STREAMS)
            server.sendall(text)
            if answer := server.recv(1):
                return answer[0]
    print(f"error: the process of `pvqae {' '.join(arguments)}` was killed", file=sys.stderr, flush=True)
    return _SIGNALLED + signal.SIGKILL


def serve(main: Callable[[], None], address: str, validates: str = "") -> NoReturn:
    """Listen on `address` and import, then run `main` in a fork for each client, until the parent process ends.

    Only this user may connect. `validates`, if not empty: a stage will need Great Expectations, too, and is the first
    to come. A client that comes before all is imported waits for the present import, and does the others in its fork.
    """
    if validates:
        from pvqae.datasets import validation

        with contextlib.suppress(ImportError):  # an extra that is not installed: the stage says so
            validation.great_expectations()
    listener = _listen(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    for name in _NEEDED:
        importlib.import_module(name)
        while _accept(listener, main, 0):
            pass
    gc.collect()
    gc.freeze()  # pages that no collection writes to stay shared with the forks
    parent = os.getppid()
    while os.getppid() == parent:
        _accept(listener, main, 1.0)
    os._exit(0)


def _listen(address: str) -> socket.socket:
    """Return a socket that appears under its name only when it listens."""
    part = f"{address}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o077)
    listener.bind(part)
    os.umask(before)
    listener.listen(64)
    os.replace(part, address)
    return listener


def _accept(listener: socket.socket, main: Callable[[], None], seconds: float) -> bool:
    """Fork for the next client; return False if none comes within `seconds`."""
    if not select.select([listener], [], [], seconds)[0]:
        return False
    client, _ = listener.accept()
    if not os.fork():
        _attend(client, main)
    client.close()
    return True


def _attend(client: socket.socket, main: Callable[[], None]) -> NoReturn:
    """Run what is asked in a fork of its own and tell the client how it ended; a client that dies takes it along."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(client, _LENGTH, len(_STREAMS))
    with client.makefile("rb") as file:
        request: dict[str, Any] = json.loads(file.read(int.from_bytes(length, "big")))
    worker = os.fork()
    if not worker:
        client.close()
        _run(request, streams, main)
    for stream in streams:
        os.close(stream)

    def end_with_client() -> None:
        if not client.recv(1):
            os.kill(worker, signal.SIGKILL)

    threading.Thread(target=end_with_client, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(bytes([code if code >= 0 else _SIGNALLED - code]))
    os._exit(0)


def _run(request: dict[str, Any], streams: Sequence[int], main: Callable[[], None]) -> NoReturn:
    """Become `pvqae` as it was asked for."""
    for number, stream in zip(_STREAMS, streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    sys.argv = ["pvqae", *request["arguments"]]
    try:
        main()  # ends the process itself
    except BaseException:
        traceback.print_exc()
    os._exit(1)
