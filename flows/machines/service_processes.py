"""The processes of the services: each in a session of its own, found again by a mark in its environment.

A pid file alone is not enough: after a SIGKILL its pid may belong to somebody else, and the children live on.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from flows.core.processes import alive, has_mark
from flows.machines.place import HOST, Place

MARK = "PVQAE_SERVICE"
LONG = 10_000_000  # bytes of a log above which a start begins a new one


def _mark(place: Place, name: str) -> str:
    return f"{place.home.resolve()}:{name}"


def members(place: Place, name: str) -> list[psutil.Process]:
    """Every living process of the service, children whose environment can't be read included."""
    mark, first, found = _mark(place, name), leader(place, name), {}
    for process in psutil.process_iter():
        if process.pid == os.getpid() or not (has_mark(process, MARK, mark) or process == first):
            continue
        with contextlib.suppress(psutil.Error):
            found.update({child.pid: child for child in (process, *process.children(recursive=True))})
    return [process for process in found.values() if alive(process)]


def leader(place: Place, name: str) -> psutil.Process | None:
    """The process that was started as the service, None when it does not live."""
    try:
        pid, *began = place.pid_file(name).read_text("utf-8").split()
        process = psutil.Process(int(pid))
        ours = has_mark(process, MARK, _mark(place, name))
        if ours is None and began:
            ours = abs(process.create_time() - float(began[0])) < 1
    except (OSError, ValueError, psutil.Error):
        return None
    return process if ours and alive(process) else None


def start(place: Place, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> psutil.Process:
    """Start `command` as the service's leader; its output goes to the service's log."""
    log = place.log(name)
    if log.exists() and log.stat().st_size > LONG:
        log.replace(log.with_suffix(".log.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, MARK: _mark(place, name)},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    started = psutil.Process(process.pid)  # before anything collects it: it may have ended already
    place.pid_file(name).write_text(f"{process.pid} {started.create_time()}\n", "utf-8")
    # Collected by a thread when it ends, else it would be a zombie for as long as we live.
    threading.Thread(target=process.wait, daemon=True).start()
    return started


def stop(place: Place, signals: Mapping[str, signal.Signals], patience: float = 5.0) -> None:
    """End the named services, each by its signal; what lives on after `patience` seconds is killed."""
    for name, number in signals.items():
        first = leader(place, name)
        for process in [first] if first else members(place, name):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
    deadline = time.monotonic() + patience
    while (left := [item for name in signals for item in members(place, name)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.wait(1)
    for name in signals:
        place.pid_file(name).unlink(missing_ok=True)


def resident(process: psutil.Process) -> int:
    """Bytes of memory."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def holder(port: int) -> str | None:
    """Who listens on `port` of this machine: pid and command as far as they can be seen; None when it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held up by connections that just ended
        try:
            probe.bind((HOST, port))
        except PermissionError:
            return "nobody, but ports below 1024 are for root only"
        except OSError:
            return _listener(port)
    return None


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error):  # macOS shows other processes' connections to root only
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                return f"pid {found.pid} ({' '.join(psutil.Process(found.pid).cmdline())[:120]})"
    return "a process of another user"


def tail(path: Path, lines: int) -> str:
    """The last `lines` of a file of any length, "" when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400 * lines))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
