"""`pvqae` as a fork of a waiting process: what was asked for happens there, and ends with who asked."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pvqae.cli import processes
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flows start it on Linux only")
# Imports nothing; its command line does what the first argument says.
SERVER = """
import os, sys, time
from pvqae.cli import processes
processes._NEEDED = ()
def main():
    what = sys.argv[1]
    if what == "tell":
        print(os.getcwd(), os.environ["ASKED"], sys.argv, "PVQAE_FORKSERVER" in os.environ, flush=True)
        print("to the other", file=sys.stderr, flush=True)
        os._exit(2)
    if what == "raise":
        raise RuntimeError("a fault")
    if what == "die":
        os.kill(os.getpid(), 9)
    print(os.getpid(), flush=True)
    time.sleep(60)
processes.serve(main, "socket")
"""
CLIENT = "import sys; from pvqae.cli import processes; sys.exit(processes.ask(sys.argv[1:]))"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=tmp_path)
    until(lambda: (tmp_path / "socket").exists())
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def client(folder: Path, *words: str) -> subprocess.Popen[str]:
    environ = os.environ | {processes.ADDRESS: "socket", "ASKED": "x" * 100_000}  # more than one packet
    command = [sys.executable, "-c", CLIENT, *words]
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=-1, stderr=-1, text=True)


def test_the_fork_has_the_arguments_environment_folder_streams_and_gives_its_code(
    server: psutil.Process, tmp_path: Path
) -> None:
    with client(tmp_path, "tell", "two words") as asked:
        out, err = asked.communicate(timeout=20)
    assert out == f"{tmp_path} {'x' * 100_000} ['pvqae', 'tell', 'two words'] False\n"
    assert (err, asked.returncode) == ("to the other\n", 2)


def test_a_fault_is_told_with_its_traceback_and_the_next_is_served(server: psutil.Process, tmp_path: Path) -> None:
    with client(tmp_path, "raise") as asked:
        assert "RuntimeError: a fault" in asked.communicate(timeout=20)[1]
    assert asked.returncode == 1
    with client(tmp_path, "raise") as asked:
        assert asked.wait(20) == 1


def test_the_signal_that_killed_the_work_is_in_the_code(server: psutil.Process, tmp_path: Path) -> None:
    with client(tmp_path, "die") as asked:
        assert asked.wait(20) == 128 + signal.SIGKILL


@pytest.mark.parametrize("killed", ["client", "server"])
def test_the_work_ends_with_who_asked_for_it(server: psutil.Process, tmp_path: Path, killed: str) -> None:
    with client(tmp_path, "sleep") as asked:
        assert asked.stdout
        work = psutil.Process(int(asked.stdout.readline()))
        assert work.is_running()
        if killed == "client":
            asked.kill()
        else:  # with all that it has forked, as the supervisor ends it
            for process in (*server.children(recursive=True), server):
                process.kill()
            assert "error: the process of `pvqae sleep` was killed" in asked.communicate(timeout=20)[1]
            assert asked.returncode == 128 + signal.SIGKILL
    until(lambda: not work.is_running() or work.status() == psutil.STATUS_ZOMBIE)


def test_only_this_user_may_ask(server: psutil.Process, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) & 0o077 == 0


def test_where_nobody_listens_the_command_does_it_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(processes.ADDRESS, "socket")
    assert processes.ask(["report"]) is None
    assert processes.ADDRESS not in os.environ  # nor do those that it starts
    (tmp_path / "socket").touch()
    monkeypatch.setenv(processes.ADDRESS, "socket")
    assert processes.ask(["report"]) is None
