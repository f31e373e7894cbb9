"""The flow's side of the fork server: it is ready some seconds later, and ends with the flow."""

import sys
from pathlib import Path

import psutil
import pytest

from flows.core import environment
from flows.core.processes import Supervisor
from pvqae.core import runtime
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flows start it on Linux only")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "DRIVERS", ())


def test_a_stage_is_a_fork_and_nothing_is_left_behind(tmp_path: Path) -> None:
    socket = tmp_path / environment.FORKSERVER
    socket.parent.mkdir()
    socket.touch()  # of a flow that was killed
    with Supervisor() as supervisor:
        supervisor.start_fork_server(tmp_path, {"train@part"})
        until(socket.is_socket, 60, pause=0.05)
        lines: list[str] = []
        command = [sys.executable, "-X", "importtime", "-m", "pvqae.cli.main", "train", "part"]
        assert supervisor.run(command, tmp_path, environment.for_stages(tmp_path), lines.append) == 2
        server = [child for child in psutil.Process().children() if "fork-server" in child.cmdline()]
        assert len(server) == 1
    assert "error: params.yaml: No such file or directory" in "".join(lines)
    assert not any(line.endswith(" torch") for line in lines)
    assert not server[0].is_running()


def test_a_flow_that_validates_has_its_library_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(Supervisor, "run", lambda self, command, *others: asked.append(command))
    for number, stages in enumerate(({"manifest"}, {"train@part", "report"}), start=1):
        Supervisor().start_fork_server(tmp_path, stages)
        until(lambda number=number: len(asked) == number)
    assert [command[-1] for command in asked] == ["validates", environment.FORKSERVER]


def test_none_is_started_where_a_gpu_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(runtime, "DRIVERS", (tmp_path / "nvidiactl",))
    Supervisor().start_fork_server(tmp_path, {"train@part"})
    assert not (tmp_path / ".pvqae").exists()
