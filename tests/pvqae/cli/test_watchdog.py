import os
import subprocess
import sys

from pvqae.cli.processes import FLOW

CHILD = """
import time
from pvqae.cli import processes
processes.end_with_flow(0.02)
print("up", flush=True)
time.sleep(30)
"""


def start(environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def test_a_stage_ends_with_a_killed_supervisor_and_not_before() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(30)"]
    with subprocess.Popen(sleeper) as supervisor, start({FLOW: str(supervisor.pid)}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        assert child.poll() is None
        supervisor.kill()
        supervisor.wait()
        assert child.wait(timeout=10) == 143


def test_without_a_supervisor_nothing_is_watched() -> None:
    for value in ("", "no number"):
        call = "from pvqae.cli import processes; processes.end_with_flow()"
        code = f"import threading; {call}; print(threading.active_count())"
        command, environment = [sys.executable, "-c", code], os.environ | {FLOW: value}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert found.stdout == "1\n"
