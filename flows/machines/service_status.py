"""How the services of a project are.

The services as a person or a program reads them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.machines import catalogue, service_processes
from flows.machines.catalogue import Service
from flows.machines.place import Place, ServiceError, secrets_of
from pvqae.core import config
from pvqae.core.config import Services


@dataclass(frozen=True)
class Status:
    """`health` is healthy, not answering or stopped; `megabytes` of resident memory, all its processes."""

    name: str
    pid: int | None
    port: int | None
    health: str
    megabytes: int
    log: str


def settings_of(root: Path, otherwise: Services) -> Services:
    """The settings that the services of `root` were last started with, `otherwise` where no file says them."""
    try:
        return Services.model_validate_json(Place(root.resolve(), otherwise).settings_file.read_text("utf-8"))
    except (OSError, ValueError):
        return otherwise


def status(root: Path, settings: Services) -> list[Status]:
    """How each service is, in the order of start."""
    place = Place(root.resolve(), settings)
    if not place.home.is_dir():
        return [Status(name, None, None, "stopped", 0, str(place.log(name))) for name in catalogue.SERVICES]
    secrets = secrets_of(place)
    return [_status(place, make(place, secrets)) for make in catalogue.SERVICES.values()]


def _status(place: Place, service: Service) -> Status:
    found = service_processes.leader(place, service.name)
    health = "stopped" if not found else "healthy" if service.answers(found.create_time()) else "not answering"
    log = str(place.log(service.name))
    return Status(service.name, found.pid if found else None, service.port, health, _megabytes(place, service), log)


def _megabytes(place: Place, service: Service) -> int:
    return sum(service_processes.resident(item) for item in service_processes.members(place, service.name)) >> 20


def log(root: Path, settings: Services, name: str, lines: int = 50) -> str:
    """The last lines of a service's log. Raises `ServiceError` for a name that is none."""
    if name not in catalogue.SERVICES:
        raise ServiceError(f"no service {name!r}; there are {', '.join(catalogue.SERVICES)}")
    return service_processes.tail(Place(root.resolve(), settings).log(name), lines)


COLOURS = {"healthy": "green", "not answering": "red", "stopped": "dim"}


def settings(root: Path, overrides: tuple[str, ...] = ()) -> config.Services:
    """The section `services` of the project's params."""
    return config.load(root / "params.yaml", overrides).services


def running(root: Path) -> config.Services:
    """What the services were started with, else what they would be started with: never an error of the params."""
    return settings_of(root, config.usable(root / "params.yaml")[0].services)


def show(found: Sequence[Status], as_json: bool = False) -> None:
    """A table in 80 columns with the logs below it, or JSON."""
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=1))
        return
    table = Table("service", "pid", "port", "health", "MB")
    for item in found:
        health = f"[{COLOURS[item.health]}]{item.health}"
        table.add_row(item.name, str(item.pid or ""), str(item.port or ""), health, str(item.megabytes or ""))
    console = Console()
    console.print(table)
    for item in found:
        console.print(f"{item.name:10}{item.log}", soft_wrap=True, highlight=False)
