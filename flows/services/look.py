"""How the services of a project are."""

from dataclasses import dataclass
from pathlib import Path

from flows.services import catalogue, processes
from flows.services.catalogue import Service
from flows.services.place import Place, ServiceError, secrets_of
from pvqae.config import Services


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
    found = processes.leader(place, service.name)
    health = "stopped" if not found else "healthy" if service.answers(found.create_time()) else "not answering"
    log = str(place.log(service.name))
    return Status(service.name, found.pid if found else None, service.port, health, _megabytes(place, service), log)


def _megabytes(place: Place, service: Service) -> int:
    return sum(processes.resident(item) for item in processes.members(place, service.name)) >> 20


def log(root: Path, settings: Services, name: str, lines: int = 50) -> str:
    """The last lines of a service's log. Raises `ServiceError` for a name that is none."""
    if name not in catalogue.SERVICES:
        raise ServiceError(f"no service {name!r}; there are {', '.join(catalogue.SERVICES)}")
    return processes.tail(Place(root.resolve(), settings).log(name), lines)
