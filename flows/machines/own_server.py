"""The registry of the services of this machine, as a whole: where it is, and how versions made before come into it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.adapters import buckets
from flows.adapters.mlflow_store import SERVED, Store
from flows.adapters.tracking import STORE, database_of, own_database
from flows.core import environment
from flows.machines import control
from flows.machines.service_files import HOST, ServiceError, ServiceFiles


@dataclass(frozen=True)
class Served:
    """A server's database, and the bucket with its files."""

    store: Store
    bucket: str


def store(root: Path, uri: str) -> Served | None:
    """Return what the tracking server at `uri` keeps, where it is that of the services of `root`; None for another."""
    files = ServiceFiles(root.resolve(), control.last_settings(root))
    if uri != files.mlflow:
        return None
    database = f"postgresql://pvqae@{HOST}:{files.settings.postgres_port}/mlflow?passfile={files.pgpass_file}"
    return Served(Store(database, SERVED), files.settings.mlflow_bucket)


def take_over(root: Path, say: Callable[[str], None] = print) -> None:
    """Copy the versions, runs and promotion log of the project's own registry into that of its running services.

    The own one stays as it is. Raises `ServiceError` where the services do not run, and `StoreError` where their
    registry is used already: then nothing is changed.
    """
    root = root.resolve()
    known = environment.of_services(root)
    served = store(root, known.get("MLFLOW_TRACKING_URI", ""))
    if served is None:
        raise ServiceError("the services of this project do not run; run: python -m flows services up")
    own = Store(own_database(root), f"{root.as_uri()}{STORE}/")
    if not own.used():
        say("the project's own registry has nothing to take over")
        return
    if there := served.store.used():
        raise ServiceError(
            f"the services' registry has {', '.join(there)} of its own, and two registries can't be joined: version "
            "numbers would be given twice; to start it anew, run: python -m flows services down, and move "
            f"{root / '.pvqae' / 'services' / 'data'} away"
        )
    # Files first: a row never names one that is not there.
    count = buckets.put_folder(root / ".pvqae" / "mlflow" / "artifacts", served.bucket)
    rows = own.copy_to(served.store)
    say(f"{rows} rows and {count} files of the project's own registry are in that of the services")


def behind(root: Path) -> bool:
    """Tell whether the project's own registry has something that its running services, with an unused one, lack."""
    root = root.resolve()
    served = store(root, environment.of_services(root).get("MLFLOW_TRACKING_URI", ""))
    if served is None or not (root / ".pvqae" / "mlflow" / "mlflow.db").is_file():
        return False
    return bool(Store(database_of(root), "").used()) and not served.store.used()
