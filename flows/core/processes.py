"""Commands in process groups of their own, none of which outlives the flow, however the flow ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.core import watchdog

GRACE = 3.0  # seconds between SIGTERM and SIGKILL


class Cancelled(Exception):  # noqa: N818 - no fault
    """The flow is ending; the command was not started, or was stopped. Never a reason to try again."""


class Guard:
    """A watchdog for this process: whatever carries its mark ends when this process dies without `close`."""

    def __init__(self, held: Sequence[int] = ()) -> None:
        os.environ[watchdog.MARK] = str(os.getpid())
        # Not to be found by its own search, and out of reach of the terminal's Ctrl-C.
        environ = {key: value for key, value in os.environ.items() if key != watchdog.MARK}
        command = [sys.executable, str(watchdog.__file__), str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environ, start_new_session=True, pass_fds=tuple(held)
        )

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.communicate(b"done")


class Supervisor:
    """Runs commands for the threads of one flow. `held` are descriptors (the dataset's lock) that children inherit."""

    def __init__(self, held: Sequence[int] = ()) -> None:
        self._held = tuple(held)
        self._gate = threading.Lock()
        self._cancelled = False
        self._running: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> Self:
        self._guard = Guard(self._held)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._guard.close()

    def run(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        on_line: Callable[[str], None] = lambda line: None,
    ) -> int:
        """Run `command` to its end, each line of its output to `on_line`; returns the exit code.

        Raises `Cancelled` when the flow is ending. On any exception the command's whole group has ended first.
        """
        process = self._start(command, cwd, {**env, watchdog.MARK: str(os.getpid())})
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    on_line(line.rstrip())
            code = process.wait()
        except BaseException:
            end([process])
            raise
        finally:
            with self._gate:
                self._running.discard(process)
        if self._cancelled:
            raise Cancelled(" ".join(command))
        return code

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """End every running command and start no more. Returns when all have ended."""
        with self._gate:
            self._cancelled = True
            running = list(self._running)
        end(running)

    def _start(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
        with self._gate:
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


def _alive(process: subprocess.Popen[Any]) -> bool:
    """Whether anything of the group is left: the leader may have ended before its children."""
    process.poll()  # collects the leader, which would else count as a member of its group
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


def end(processes: Sequence[subprocess.Popen[Any]], grace: float = GRACE) -> None:
    """End the leaders of process groups and all that they have started; returns when none is left."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, GRACE)):
        deadline = time.monotonic() + patience
        for process in filter(_alive, processes):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue
        while any(map(_alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.02)
