"""The Prefect server of one command: it answers when the command needs it, and ends with it, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.adapters import prefect_server
from flows.core import environment

# What a command does, up to its first use of Prefect.
COMMAND = """
import os, sys, time
from flows.core import environment
from flows.cli.shared import guarded_server
from pathlib import Path
environment.prepare(Path.cwd())
wait = guarded_server()
assert "prefect" not in sys.modules
wait()
from flows.adapters import prefect_server as prefect_temporary
import requests
print(os.environ["PREFECT_API_URL"], "PREFECT_API_URL" in prefect_temporary.lasting(os.environ), flush=True)
if sys.argv[1] == "sleep":
    time.sleep(60)
"""


def command(folder: Path, *words: str, **settings: str) -> subprocess.Popen[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "PVQAE"))}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], cwd=folder, env=environ | settings, stdout=-1, stderr=-1, text=True
    )


def servers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "uvicorn" in process.cmdline() and process.environ().get("PREFECT_HOME", "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its database is made once."""
    return tmp_path_factory.mktemp("place")


def test_it_answers_and_ends_with_the_command(place: Path) -> None:
    with command(place, "end") as found:
        out, err = found.communicate(timeout=120)
    assert found.returncode == 0, err
    api, lasting = out.split()
    assert api.startswith("http://127.0.0.1:")
    assert (api.endswith("/api"), lasting) == (True, "False")
    assert f"starting a temporary Prefect server on {api.removesuffix('/api')}" in err
    assert not prefect_server.answers(f"{api}/health")
    assert not servers(place)


def test_two_that_start_at_once_do_not_make_the_database_twice(tmp_path: Path) -> None:
    with command(tmp_path, "end") as one, command(tmp_path, "end") as other:
        said = [found.communicate(timeout=120) for found in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], said


def test_it_ends_with_a_killed_command(place: Path) -> None:
    with command(place, "sleep") as found:
        assert found.stdout
        assert found.stdout.readline()
        [server] = servers(place)
        os.kill(found.pid, signal.SIGKILL)
    server.wait(20)


def test_one_that_can_not_start_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "prefect.db").write_text("no database")
    with command(tmp_path, "end", PREFECT_HOME=str(home)) as found:
        _, err = found.communicate(timeout=120)
    assert found.returncode == 1
    assert (
        f"the temporary Prefect server did not start (exit 3), see above; its database is in PREFECT_HOME, {home}"
        in err
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"PREFECT_API_URL": "http://server/api"},
        {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"},
        {"PREFECT_HOME": "with a profile"},
    ],
)
def test_none_where_another_is_known_or_none_is_wanted(
    setting: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("with a profile").mkdir()
    Path("with a profile/profiles.toml").touch()
    environ = {"PREFECT_HOME": str(tmp_path)} | environment.QUIET | setting
    before = dict(environ)
    prefect_server.begin(environ)()
    assert environ == before
