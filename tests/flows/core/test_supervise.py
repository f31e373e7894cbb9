"""No process outlives its flow: cancelled, interrupted or killed. All with real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.core import shared_files
from flows.core.processes import Cancelled, Supervisor

# A command with a child of its own, as dvc and the training below it; both write their pid.
TREE = "sh -c 'echo $$ > child; exec sleep 60' & echo $$ > parent; wait"
STUBBORN = f"trap '' TERM; {TREE.replace('exec sleep 60', 'trap : TERM; sleep 60; sleep 60')}; sleep 60"

FLOW = """
import sys, pathlib, os, signal, subprocess
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
from flows.core import shared_files
from flows.core.processes import Supervisor
folder = pathlib.Path(sys.argv[1])
with shared_files.held(folder / "lock") as held, Supervisor([held]) as supervisor:
    # like Prefect's temporary server: a child that the supervisor did not start
    server = subprocess.Popen(["sleep", "60"])
    (folder / "server").write_text(str(server.pid))
    try:
        supervisor.run(["sh", "-c", sys.argv[2]], folder, dict(os.environ))
    finally:
        server.kill()
"""


def until(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def alive(*files: Path) -> list[str]:
    found = []
    for file in files:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE:
                found.append(file.name)
    return found


def started(*files: Path) -> bool:
    return until(lambda: all(file.exists() and file.read_text().strip() for file in files))


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as found:
        yield found


def test_lines_come_as_they_are_written_and_the_exit_code_at_the_end(supervisor: Supervisor, tmp_path: Path) -> None:
    lines: list[str] = []
    assert supervisor.run(["sh", "-c", "echo a; echo b >&2; exit 3"], tmp_path, os.environ, lines.append) == 3
    assert lines == ["a", "b"]


@pytest.mark.parametrize("command", [TREE, STUBBORN])
def test_cancel_ends_the_whole_group_and_starts_no_more(supervisor: Supervisor, tmp_path: Path, command: str) -> None:
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            supervisor.run(["sh", "-c", command], tmp_path, os.environ)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    pids = tmp_path / "parent", tmp_path / "child"
    assert started(*pids)
    supervisor.cancel()
    assert alive(*pids) == []
    thread.join(30)
    assert [type(error) for error in outcome] == [Cancelled]
    with pytest.raises(Cancelled):
        supervisor.run(["true"], tmp_path, os.environ)


def test_an_exception_while_it_runs_ends_the_group(supervisor: Supervisor, tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise KeyboardInterrupt

    # the line comes once both pids are written: the group is killed at that moment
    told = TREE.replace("wait", "until [ -s child ]; do sleep 0.02; done; echo line; wait")
    with pytest.raises(KeyboardInterrupt):
        supervisor.run(["sh", "-c", told], tmp_path, os.environ, fail)
    assert alive(tmp_path / "parent", tmp_path / "child") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_killed_flow_and_the_next_one_waits_for_that(tmp_path: Path, number: int) -> None:
    flow = subprocess.Popen([sys.executable, "-c", FLOW, str(tmp_path), TREE], stderr=subprocess.DEVNULL)
    pids = tmp_path / "parent", tmp_path / "child", tmp_path / "server"
    assert started(*pids)
    assert alive(*pids) == ["parent", "child", "server"]
    flow.send_signal(number)
    flow.wait(60)  # a busy machine takes long to end a tree of processes
    with shared_files.held(tmp_path / "lock"):  # what a rerun does first
        assert alive(*pids) == []


def test_a_second_flow_is_told_that_it_waits(tmp_path: Path) -> None:
    told = threading.Event()
    entered = threading.Event()

    def second() -> None:
        with shared_files.held(tmp_path / "lock", told.set):
            entered.set()

    with shared_files.held(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(30)
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()
