"""Commands in process groups of their own, none of which outlives the flow, however the flow ends.

Run as a program (`python -P processes.py PID`) it is the reaper: a small process that outlives the flow just long
enough to end what a killed flow left behind. After SIGKILL the flow itself can do nothing: dvc, the training below it
and Prefect's temporary server would live on. A death signal (PR_SET_PDEATHSIG) reaches direct children only, exists on
Linux only, and fires when the *thread* that forked ends. So the reaper waits for the end of a pipe whose other end only
the flow holds, then kills every process that carries the flow's mark in its environment. It may also hold the flow's
lock, so that the next flow starts only when all are gone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from pvqae.cli.processes import FLOW

_GRACE = 3.0  # seconds between SIGTERM and SIGKILL
_PATIENCE = 30.0  # seconds after which the reaper leaves alone what cannot be killed (stuck in the kernel)


class Cancelled(Exception):  # noqa: N818 - no fault
    """The flow is ending; the command was not started, or was stopped. Never a reason to try again."""


class ProcessReaper:
    """A process that ends whatever carries the mark of this one, when this one dies without `close`."""

    def __init__(self, held: Sequence[int] = ()) -> None:
        os.environ[FLOW] = str(os.getpid())
        # Not to be found by its own search, and out of reach of the terminal's Ctrl-C.
        environ = {key: value for key, value in os.environ.items() if key != FLOW}
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-P", __file__, str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env=environ | {"PYTHONPATH": path},
            start_new_session=True,
            pass_fds=tuple(held),
        )

    def close(self) -> None:
        """End the reaper: this process has ended what it started itself."""
        if self._process.poll() is None:
            self._process.communicate(b"done")


class Supervisor:
    """Runs commands for the threads of one flow. `held` are descriptors (the dataset's lock) that children inherit."""

    def __init__(self, held: Sequence[int] = ()) -> None:
        self._held = tuple(held)
        self._lock = threading.Lock()
        self._cancelled = False
        self._running: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> Self:
        self._reaper = ProcessReaper(self._held)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._reaper.close()

    def run(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        on_line: Callable[[str], None] = lambda line: None,
    ) -> int:
        """Run `command` to its end, each line of its output to `on_line`; return the exit code.

        Raises `Cancelled` when the flow is ending. On any exception the command's whole group has ended first.
        """
        process = self._start(command, cwd, {**env, FLOW: str(os.getpid())})
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    on_line(line.rstrip())
            code = process.wait()
        except BaseException:
            end_groups([process])
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        if self._cancelled:
            raise Cancelled(" ".join(command))
        return code

    def start_fork_server(self, workspace: Path, stages: Set[str]) -> None:
        """Begin to import for `stages` of `workspace`, whose lock the caller holds, in a process that they fork from.

        Until that is done, and where it fails, stages start as they do without it. The process ends with the flow.
        """
        from flows.core import environment
        from pvqae.core import runtime

        # Elsewhere a fork of a process with threads is not safe; nor is one of a process that may have asked CUDA.
        if sys.platform != "linux" or runtime.may_have_gpu():
            return
        socket = workspace / environment.FORKSERVER
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)  # of a flow that was killed
        validates = ["validates"] if stages & {"manifest", "validate"} else []
        command = [sys.executable, "-m", "pvqae.cli.main", "fork-server", environment.FORKSERVER, *validates]

        def work() -> None:
            with contextlib.suppress(Cancelled):
                self.run(command, workspace, environment.for_stages(workspace))

        threading.Thread(target=work, daemon=True).start()

    @property
    def cancelled(self) -> bool:
        """Whether the flow is ending."""
        return self._cancelled

    def cancel(self) -> None:
        """End every running command and start no more; return when all have ended."""
        with self._lock:
            self._cancelled = True
            running = list(self._running)
        end_groups(running)

    def _start(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._cancelled:
                raise Cancelled(" ".join(command))
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=self._held,
            )
            self._running.add(process)
            return process


def _group_lives(process: subprocess.Popen[Any]) -> bool:
    """Tell whether anything of the group is left: the leader may have ended before its children."""
    process.poll()  # collects the leader, which would else count as a member of its group
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


def end_groups(processes: Sequence[subprocess.Popen[Any]], grace: float = _GRACE) -> None:
    """End the leaders of process groups and all that they have started; return when none is left."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _GRACE)):
        deadline = time.monotonic() + patience
        for process in filter(_group_lives, processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        while any(map(_group_lives, processes)) and time.monotonic() < deadline:
            time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def has_mark(process: psutil.Process, key: str, value: str) -> bool | None:
    """Tell whether a process was started with the variable `key` set to `value`.

    None where that can't be told: another user's, whom not even root of a container may look at.
    """
    try:
        return bool(process.environ().get(key) == value)
    except psutil.AccessDenied:
        return None
    except (psutil.Error, OSError):  # ended meanwhile
        return False


def _reap(pid: str) -> None:
    """Kill until none is left. Checkpoints are written under another name and renamed, so no file is lost."""
    deadline = time.monotonic() + _PATIENCE
    while (found := list(_marked(pid))) and time.monotonic() < deadline:
        # Youngest first: a training before the dvc that waits for it.
        for process in sorted(found, key=lambda process: process.create_time(), reverse=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.5)


def _marked(pid: str) -> Iterator[psutil.Process]:
    return (process for process in psutil.process_iter() if has_mark(process, FLOW, pid) and alive(process))


if __name__ == "__main__":
    if sys.stdin.buffer.read() != b"done":
        _reap(sys.argv[1])
