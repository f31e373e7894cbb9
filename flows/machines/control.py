"""Start and stop the services of a project."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil

from flows.adapters import dvc_files
from flows.core import locks
from flows.core.processes import alive
from flows.machines import catalogue, clients, service_processes, weed
from flows.machines.catalogue import Service
from flows.machines.place import REGION, Place, ServiceError, secrets_of, write_private
from pvqae.core.config import Services

POLL = 0.2  # seconds between two questions to a service that starts
PATIENCE = 10.0  # seconds that a living service is given to answer before it is started anew
Say = Callable[[str], None]


def up(root: Path, settings: Services, say: Say = print) -> dict[str, str]:
    """Start what is not healthy, make databases, buckets and pool, point DVC and the flows here.

    Returns the environment of clients. Raises `ServiceError` that names the service, and who has its port or the end
    of its log; what is up by then stays up, and another `up` goes on from there.
    """
    place = Place(root.resolve(), settings)
    place.home.mkdir(parents=True, exist_ok=True)
    with locks.held(place.home / "lock", lambda: say("another command starts or stops the services: waiting")):
        secrets = secrets_of(place)
        write_private(place.settings_file, settings.model_dump_json(indent=1))
        services = [make(place, secrets) for make in catalogue.SERVICES.values()]
        _bring_all(place, services, say)
        env = clients.client(place)
        login = {"access_key_id": secrets.s3_key_id, "secret_access_key": secrets.s3_secret}
        where = {"url": f"s3://{settings.dvc_bucket}", "endpointurl": clients.s3_endpoint(place)}
        dvc_files.use_remote(place.root, place.former_remote, {**where, "region": REGION, **login})
        write_private(place.env_file, json.dumps(env, indent=1))
    return env


def _bring_all(place: Place, services: list[Service], say: Say) -> None:
    """All at once, each after what it needs. The first failure, or Ctrl-C, ends the waiting for the others."""
    futures: dict[str, Future[None]] = {}
    given_up = threading.Event()
    with ThreadPoolExecutor(len(services)) as threads:
        try:
            for service in services:
                needed = [futures[name] for name in service.needs]
                futures[service.name] = threads.submit(_bring, place, service, needed, given_up, say)
            for future in futures.values():
                future.result()
        except BaseException:
            given_up.set()
            raise


def _bring(place: Place, service: Service, needed: list[Future[None]], given_up: threading.Event, say: Say) -> None:
    for future in needed:
        if future.exception():
            return  # what it needs has failed, and says why
    began = time.monotonic()
    if _still_healthy(place, service):
        service.complete()
        say(f"{service.name}: runs already")
        return
    service_processes.stop(place, catalogue.signals((service.name,)))
    if service.port and (other := service_processes.holder(service.port)):
        key = f"services.{service.name}_port"
        raise ServiceError(f"{service.name}: port {service.port} is taken by {other}; end that, or set another {key}")
    service.prepare()
    started = service_processes.start(place, service.name, service.command, service.env, service.cwd)
    _wait(place, service, started, given_up)
    service.complete()
    say(f"{service.name}: healthy after {time.monotonic() - began:.1f} s")


def _healthy(place: Place, service: Service) -> bool:
    process = service_processes.leader(place, service.name)
    return process is not None and service.answers(process.create_time())


def _still_healthy(place: Place, service: Service) -> bool:
    """A living service is asked for a while: on a busy machine one answer may take long, and a restart longer."""
    deadline = time.monotonic() + PATIENCE
    while not (healthy := _healthy(place, service)) and service_processes.leader(place, service.name):
        if time.monotonic() > deadline:
            break
        time.sleep(POLL)
    return healthy


def _wait(place: Place, service: Service, started: psutil.Process, given_up: threading.Event) -> None:
    deadline = time.monotonic() + place.settings.timeout
    while not _healthy(place, service):
        ended = not alive(started)
        if ended or time.monotonic() > deadline:
            what = "ended by itself" if ended else f"does not answer after {place.settings.timeout:.0f} s"
            log = place.log(service.name)
            raise ServiceError(f"{service.name} {what}; the end of {log}:\n{service_processes.tail(log, 15)}")
        if given_up.wait(POLL):
            raise ServiceError(f"{service.name}: not waited for, since another service failed")


def down(root: Path, settings: Services) -> None:
    """End all services within 10 s, with every child, and set DVC's former remote back. Data and secrets stay.

    Raises `ServiceError` when a process can't be ended.
    """
    place = Place(root.resolve(), settings)
    if not place.home.is_dir():
        return
    with locks.held(place.home / "lock"):
        place.env_file.unlink(missing_ok=True)
        place.settings_file.unlink(missing_ok=True)
        dvc_files.former_remote(place.root, place.former_remote)
        s3 = service_processes.leader(place, "s3")
        sockets = weed.leftovers(s3.cmdline()) if s3 else []
        for names, patience in catalogue.ENDINGS:
            service_processes.stop(place, catalogue.signals(names), patience)
        for file in sockets:
            file.unlink(missing_ok=True)
        left = [item.pid for name in catalogue.SERVICES for item in service_processes.members(place, name)]
        if left:
            raise ServiceError(f"processes {left} of the services can't be ended; see: ps {' '.join(map(str, left))}")


def on_free_ports(settings: Services) -> Services:
    """The same settings on ports that are free now: for tests and for a second project."""
    names = ("postgres_port", "s3_port", "mlflow_port", "prefect_port")
    return settings.model_copy(update=dict(zip(names, weed.free_ports(len(names)), strict=True)))


@contextmanager
def running(root: Path, settings: Services) -> Iterator[dict[str, str]]:
    """The services of `root` for the length of the block; yields the environment of clients."""
    try:
        yield up(root, settings)
    finally:
        down(root, settings)
