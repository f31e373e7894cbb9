"""Start, stop and look at the services of a project; keep them up, in a loop or as a unit of systemd.

Also their registry as a whole: where it is, and how versions that were made before come into it.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.adapters import dvc_files
from flows.adapters.dvc_files import write_private
from flows.adapters.tracking import DATABASE, STORE, database_of, own_database
from flows.core import environment, shared_files
from flows.core.processes import alive
from flows.machines import catalogue
from flows.machines.catalogue import Service
from flows.machines.service_files import HOST, REGION, ServiceError, ServiceFiles
from flows.machines.service_processes import ServiceProcesses, free_ports
from pvqae.core import config
from pvqae.core.config import Services
from pvqae.core.files import write_text

if TYPE_CHECKING:
    from flows.adapters.mlflow_store import Store

_POLL = 0.2  # seconds between two questions to a service that starts
_PATIENCE = 10.0  # seconds that a living service is given to answer before it is started again
# PostgreSQL's fast shutdown; at SIGTERM it would wait for every client to leave.
_SIGNALS = {"postgres": signal.SIGINT}
_Say = Callable[[str], None]


def up(root: Path, settings: Services, say: _Say = print) -> dict[str, str]:
    """Start what is not healthy, make databases, buckets and pool, point DVC and the flows here.

    Return the environment of clients. Raises `ServiceError` that names the service, and who has its port or the end
    of its log; what is up by then stays up, and another `up` goes on from there.
    """
    files = ServiceFiles(root.resolve(), settings)
    files.home.mkdir(parents=True, exist_ok=True)
    with shared_files.held(files.home / "lock", lambda: say("another command starts or stops the services: waiting")):
        secrets = files.secrets()
        write_private(files.settings_file, settings.model_dump_json(indent=1))
        services = [make(files, secrets) for make in catalogue.SERVICES.values()]
        _bring_all(files, services, say)
        env = files.client_env
        login = {"access_key_id": secrets.s3_key_id, "secret_access_key": secrets.s3_secret}
        where = {"url": f"s3://{settings.dvc_bucket}", "endpointurl": files.s3_endpoint}
        dvc_files.use_remote(files.root, files.former_remote, {**where, "region": REGION, **login})
        write_private(files.env_file, json.dumps(env, indent=1))
    return env


def _bring_all(files: ServiceFiles, services: list[Service], say: _Say) -> None:
    """Start all at once, each after what it needs. The first failure, or Ctrl-C, ends the waiting for the others."""
    futures: dict[str, Future[None]] = {}
    given_up = threading.Event()
    with ThreadPoolExecutor(len(services)) as threads:
        try:
            for service in services:
                needed = [futures[name] for name in service.needs]
                futures[service.name] = threads.submit(_bring, files, service, needed, given_up, say)
            for future in futures.values():
                future.result()
        except BaseException:
            given_up.set()
            raise


def _bring(
    files: ServiceFiles, service: Service, needed: list[Future[None]], given_up: threading.Event, say: _Say
) -> None:
    for future in needed:
        if future.exception():
            return  # what it needs has failed, and says why
    began = time.monotonic()
    if _still_healthy(files, service):
        service.complete()
        say(f"{service.name}: runs already")
        return
    ServiceProcesses(files).stop(_signals((service.name,)))
    if service.port and (other := _holder(service.port)):
        key = f"services.{service.name}_port"
        raise ServiceError(f"{service.name}: port {service.port} is taken by {other}; end that, or set another {key}")
    service.prepare()
    started = ServiceProcesses(files).start(service.name, service.command, service.env, service.cwd)
    _wait(files, service, started, given_up)
    service.complete()
    say(f"{service.name}: healthy after {time.monotonic() - began:.1f} s")


def _holder(port: int) -> str | None:
    """Return who listens on `port` of this machine: pid and command where they can be seen; None when it is free."""
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


def _healthy(files: ServiceFiles, service: Service) -> bool:
    process = ServiceProcesses(files).leader(service.name)
    return process is not None and service.answers(process.create_time())


def _still_healthy(files: ServiceFiles, service: Service) -> bool:
    """Ask a living service for a while: on a busy machine one answer may take long, and a restart longer."""
    deadline = time.monotonic() + _PATIENCE
    while not (healthy := _healthy(files, service)) and ServiceProcesses(files).leader(service.name):
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    return healthy


def _wait(files: ServiceFiles, service: Service, started: psutil.Process, given_up: threading.Event) -> None:
    deadline = time.monotonic() + files.settings.timeout
    while not _healthy(files, service):
        ended = not alive(started)
        if ended or time.monotonic() > deadline:
            what = "ended by itself" if ended else f"does not answer after {files.settings.timeout:.0f} s"
            log = files.log(service.name)
            raise ServiceError(f"{service.name} {what}; the end of {log}:\n{_tail(log, 15)}")
        if given_up.wait(_POLL):
            raise ServiceError(f"{service.name}: not waited for, since another service failed")


def _tail(path: Path, lines: int) -> str:
    """Return the last `lines` of a file of any length, "" when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400 * lines))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])


def _signals(names: tuple[str, ...]) -> dict[str, signal.Signals]:
    """Return the signal that ends each of the named services."""
    return {name: _SIGNALS.get(name, signal.SIGTERM) for name in names}


def down(root: Path, settings: Services) -> None:
    """End all services within 10 s, with every child, and set DVC's former remote back. Data and secrets stay.

    Raises `ServiceError` when a process can't be ended.
    """
    files = ServiceFiles(root.resolve(), settings)
    if not files.home.is_dir():
        return
    with shared_files.held(files.home / "lock"):
        files.env_file.unlink(missing_ok=True)
        files.settings_file.unlink(missing_ok=True)
        dvc_files.former_remote(files.root, files.former_remote)
        s3 = ServiceProcesses(files).leader("s3")
        sockets = catalogue.s3_sockets(s3.cmdline()) if s3 else []
        for names, patience in catalogue.ENDINGS:
            ServiceProcesses(files).stop(_signals(names), patience)
        for socket in sockets:
            socket.unlink(missing_ok=True)
        left = [item.pid for name in catalogue.SERVICES for item in ServiceProcesses(files).members(name)]
        if left:
            raise ServiceError(f"processes {left} of the services can't be ended; see: ps {' '.join(map(str, left))}")


def on_free_ports(settings: Services) -> Services:
    """Return the settings with ports that are free now: for tests and for a second project."""
    names = ("postgres_port", "s3_port", "mlflow_port", "prefect_port")
    return settings.model_copy(update=dict(zip(names, free_ports(len(names)), strict=True)))


@dataclass(frozen=True)
class _Status:
    """`health` is healthy, not answering, stopped, or orphaned: processes are left without the one that was started.

    `megabytes` of resident memory, of all its processes.
    """

    name: str
    pid: int | None
    port: int | None
    health: str
    megabytes: int
    log: str


def status(root: Path, settings: Services) -> list[_Status]:
    """Return how each service is, in the order of start."""
    files = ServiceFiles(root.resolve(), settings)
    if not files.home.is_dir():
        return [_Status(name, None, None, "stopped", 0, str(files.log(name))) for name in catalogue.SERVICES]
    secrets = files.secrets()
    return [_status(files, make(files, secrets)) for make in catalogue.SERVICES.values()]


def _status(files: ServiceFiles, service: Service) -> _Status:
    found, name = ServiceProcesses(files).leader(service.name), service.name
    if found:
        health = "healthy" if service.answers(found.create_time()) else "not answering"
    else:
        health = "orphaned" if ServiceProcesses(files).members(name) else "stopped"
    memory = ServiceProcesses(files).megabytes(name)
    return _Status(name, found.pid if found else None, service.port, health, memory, str(files.log(name)))


def log(root: Path, settings: Services, name: str, lines: int = 50) -> str:
    """Return the last lines of a service's log. Raises `ServiceError` for an unknown name."""
    if name not in catalogue.SERVICES:
        raise ServiceError(f"no service {name!r}; there are {', '.join(catalogue.SERVICES)}")
    return _tail(ServiceFiles(root.resolve(), settings).log(name), lines)


def last_settings(root: Path) -> Services:
    """Return what the services were started with, else what they would be started with: never an error of params."""
    would_be = config.usable(root / "params.yaml")[0].services
    try:
        return Services.model_validate_json(ServiceFiles(root.resolve(), would_be).settings_file.read_text("utf-8"))
    except (OSError, ValueError):
        return would_be


_PAUSE, _LONGEST = 10.0, 300.0  # seconds between two looks; after failures in a row, at most


def keep(root: Path, settings: Services, say: _Say = print, pause: float = _PAUSE, looks: int | None = None) -> None:
    """Start the services, and again those that are not healthy, until the process ends or after so many `looks`.

    A service that can't be started is told, and tried again after a pause that grows. Raises `ServiceError` where the
    services can't be started to begin with.
    """
    up(root, settings, say)
    failed = 0
    while looks is None or looks > 0:
        time.sleep(min(_LONGEST, pause * 2**failed))
        looks = None if looks is None else looks - 1
        ill = [item for item in status(root, settings) if item.health != "healthy"]
        if not ill:
            failed = 0
            continue
        say("; ".join(f"{item.name} is {item.health}: starting it again" for item in ill))
        try:
            up(root, settings, lambda line: None if line.endswith("runs already") else say(line))
            failed = 0
        except ServiceError as error:
            failed += 1
            say(f"{error}\ntrying again in {min(_LONGEST, pause * 2**failed):.0f} s")


_UNIT = """[Unit]
Description=Servers of the pvqae project {root}
StartLimitIntervalSec=0

[Service]
WorkingDirectory={root}
ExecStart={python} -m flows services keep
ExecStop={python} -m flows services down
# A keeper that dies takes no server along, and the next one finds them.
KillMode=process
Restart=always
RestartSec=10

[Install]
WantedBy=default.target
"""


def unit(root: Path) -> str:
    """Return the text of a user's unit of systemd that keeps the services of the project at `root` up."""
    # A path with blanks or percent signs, as systemd wants to read it.
    python = shlex.quote(sys.executable).replace("%", "%%")
    return _UNIT.format(root=str(root.resolve()).replace("%", "%%"), python=python)


def write_unit(root: Path) -> Path:
    """Write the unit where systemd looks for this user's; return the file."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", root.resolve().name)
    file = home / "systemd" / "user" / f"pvqae-{name}.service"
    write_text(file, unit(root))
    return file


@dataclass(frozen=True)
class Served:
    """A server's database, and the bucket with its files."""

    store: "Store"
    bucket: str


def served(root: Path, uri: str) -> Served | None:
    """Return what the tracking server at `uri` keeps, where it is that of the services of `root`; None for another."""
    from flows.adapters.mlflow_store import SERVED, Store

    files = ServiceFiles(root.resolve(), last_settings(root))
    if uri != files.mlflow:
        return None
    database = f"postgresql://pvqae@{HOST}:{files.settings.postgres_port}/mlflow?passfile={files.pgpass_file}"
    return Served(Store(database, SERVED), files.settings.mlflow_bucket)


def take_over(root: Path, say: Callable[[str], None] = print) -> None:
    """Copy the versions, runs and promotion log of the project's own registry into that of its running services.

    The own one stays as it is. Raises `ServiceError` where the services do not run, and `StoreError` where their
    registry is used already: then nothing is changed.
    """
    from flows.adapters import buckets
    from flows.adapters.mlflow_store import Store

    root = root.resolve()
    known = environment.of_services(root)
    found = served(root, known.get("MLFLOW_TRACKING_URI", ""))
    if found is None:
        raise ServiceError("the services of this project do not run; run: python -m flows services up")
    own = Store(own_database(root), f"{root.as_uri()}{STORE}/")
    if not own.used():
        say("the project's own registry has nothing to take over")
        return
    if there := found.store.used():
        raise ServiceError(
            f"the services' registry has {', '.join(there)} of its own, and two registries can't be joined: version "
            "numbers would be given twice; to start it anew, run: python -m flows services down, and move "
            f"{root / '.pvqae' / 'services' / 'data'} away"
        )
    # Files first: a row never names one that is not there.
    count = buckets.put_folder(root / ".pvqae" / "mlflow" / "artifacts", found.bucket)
    rows = own.copy_to(found.store)
    say(f"{rows} rows and {count} files of the project's own registry are in that of the services")


def behind(root: Path) -> bool:
    """Tell whether the project's own registry has something that its running services, with an unused one, lack."""
    from flows.adapters.mlflow_store import Store

    root = root.resolve()
    found = served(root, environment.of_services(root).get("MLFLOW_TRACKING_URI", ""))
    if found is None or not (root / DATABASE).is_file():
        return False
    return bool(Store(database_of(root), "").used()) and not found.store.used()
