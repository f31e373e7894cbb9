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
from flows.machines.service_files import HOST, ServiceFiles

_MARK = "PVQAE_SERVICE"
_LONG = 10_000_000  # bytes of a log above which a start begins a new one


class ServiceProcesses:
    """The processes of the services whose files are `files`."""

    def __init__(self, files: ServiceFiles) -> None:
        self._files = files

    def members(self, name: str) -> list[psutil.Process]:
        """Return every living process of the service, children whose environment can't be read included."""
        mark, first, found = self._mark(name), self.leader(name), {}
        for process in psutil.process_iter():
            if process.pid == os.getpid() or not (has_mark(process, _MARK, mark) or process == first):
                continue
            with contextlib.suppress(psutil.Error):
                found.update({child.pid: child for child in (process, *process.children(recursive=True))})
        return [process for process in found.values() if alive(process)]

    def leader(self, name: str) -> psutil.Process | None:
        """Return the process that was started as the service, None when it does not live."""
        try:
            pid, *began = self._files.pid_file(name).read_text("utf-8").split()
            process = psutil.Process(int(pid))
            ours = has_mark(process, _MARK, self._mark(name))
            if ours is None and began:
                ours = abs(process.create_time() - float(began[0])) < 1
        except (OSError, ValueError, psutil.Error):
            return None
        return process if ours and alive(process) else None

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> psutil.Process:
        """Start `command` as the service's leader; its output goes to the service's log."""
        log = self._files.log(name)
        if log.exists() and log.stat().st_size > _LONG:
            log.replace(log.with_suffix(".log.1"))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**env, _MARK: self._mark(name)},
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        started = psutil.Process(process.pid)  # before anything collects it: it may have ended already
        self._files.pid_file(name).write_text(f"{process.pid} {started.create_time()}\n", "utf-8")
        # Collected by a thread when it ends, else it would be a zombie for as long as we live.
        threading.Thread(target=process.wait, daemon=True).start()
        return started

    def stop(self, signals: Mapping[str, signal.Signals], patience: float = 5.0) -> None:
        """End the named services, each by its signal; what lives on after `patience` seconds is killed."""
        for name, number in signals.items():
            first = self.leader(name)
            for process in [first] if first else self.members(name):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
        deadline = time.monotonic() + patience
        while (left := [item for name in signals for item in self.members(name)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.wait(1)
        for name in signals:
            self._files.pid_file(name).unlink(missing_ok=True)

    def megabytes(self, name: str) -> int:
        """Return the resident memory of all processes of the service."""
        found = 0
        for process in self.members(name):
            with contextlib.suppress(psutil.Error):
                found += int(process.memory_info().rss)
        return found >> 20

    def _mark(self, name: str) -> str:
        return f"{self._files.home.resolve()}:{name}"


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind((HOST, 0))
        return [int(item.getsockname()[1]) for item in sockets]
