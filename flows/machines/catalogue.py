"""What each service is: its command, environment, health and what has to be made before and after its start."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from flows.adapters import prefect_server
from flows.adapters.probes import PostgresProbe, S3Probe
from flows.machines import clients, postgres, weed, worker
from flows.machines.place import HOST, Place, Secrets

WORKER = "pvqae-worker"


def nothing() -> None:
    """Where nothing has to be made."""


@dataclass(frozen=True)
class Service:
    """`answers` gets the start of its process, in seconds of the epoch; `prepare` comes before the start, `complete`
    after the first answer; both may run again."""

    name: str
    port: int | None
    command: tuple[str, ...]
    env: dict[str, str]
    answers: Callable[[float], bool]
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] = nothing
    complete: Callable[[], None] = nothing
    cwd: Path = field(default_factory=Path)


def _postgres(place: Place, secrets: Secrets) -> Service:
    server = PostgresProbe(place.settings.postgres_port, place.pgpass_file)
    return Service(
        name="postgres",
        port=place.settings.postgres_port,
        command=postgres.command(place),
        env=clients.clean(),
        answers=lambda since: server.answers(),
        prepare=lambda: postgres.prepare(place, secrets.postgres_password),
        complete=lambda: server.make_database("mlflow"),
        cwd=Path("/"),
    )


def _s3(place: Place, secrets: Secrets) -> Service:
    settings = place.settings
    server = S3Probe(clients.s3_endpoint(place), secrets.s3_key_id, secrets.s3_secret)
    buckets = (settings.dvc_bucket, settings.mlflow_bucket, settings.landing_bucket)
    return Service(
        name="s3",
        port=settings.s3_port,
        command=weed.command(place),
        env=clients.clean() | weed.signing(secrets.s3_signing),
        answers=lambda since: server.answers(),
        prepare=lambda: place.data("s3").mkdir(parents=True, exist_ok=True),
        complete=lambda: server.make_buckets(buckets),
        cwd=place.home,
    )


def _mlflow(place: Place, secrets: Secrets) -> Service:
    settings = place.settings
    store = f"postgresql://pvqae@{HOST}:{settings.postgres_port}/mlflow"
    env = clients.clean() | clients.s3_client(place) | {"PGPASSFILE": str(place.pgpass_file)}
    env["MLFLOW_S3_ENDPOINT_URL"] = clients.s3_endpoint(place)
    words = ["server", "--host", HOST, "--port", str(settings.mlflow_port), "--workers", "1"]
    words += ["--backend-store-uri", store, "--artifacts-destination", f"s3://{settings.mlflow_bucket}"]
    return Service(
        name="mlflow",
        port=settings.mlflow_port,
        command=(sys.executable, "-m", "mlflow", *words),
        env=env,
        answers=lambda since: prefect_server.answers(f"http://{HOST}:{settings.mlflow_port}/health"),
        needs=("postgres", "s3"),
        prepare=lambda: postgres.upgrade(place, store, env, metadata.version("mlflow")),
        cwd=place.home,
    )


def _prefect(place: Place, secrets: Secrets) -> Service:
    # The packaged PostgreSQL lacks the extension pg_trgm that Prefect's tables need, so Prefect keeps its SQLite.
    settings = place.settings
    return Service(
        name="prefect",
        port=settings.prefect_port,
        command=(
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            HOST,
            "--port",
            str(settings.prefect_port),
        ),
        env=clients.clean() | {"PREFECT_HOME": str(place.data("prefect"))},
        answers=lambda since: prefect_server.answers(f"{clients.api(place)}/health"),
        prepare=lambda: place.data("prefect").mkdir(parents=True, exist_ok=True),
        complete=lambda: _pools(place),
        cwd=place.home,
    )


def _worker(place: Place, secrets: Secrets) -> Service:
    settings = place.settings
    return Service(
        name="worker",
        port=None,
        command=tuple(worker.command(settings.work_pool, WORKER, settings.worker_limit)),
        env=_flows_env(place, "worker"),
        answers=lambda since: prefect_server.worker_online(clients.api(place), settings.work_pool, WORKER, since),
        needs=("prefect",),
        prepare=lambda: place.data("worker").mkdir(parents=True, exist_ok=True),
        complete=lambda: _deploy(place),
        cwd=place.root,
    )


def _watcher(place: Place, secrets: Secrets) -> Service:
    """Nobody asks it anything: it is healthy while it lives."""
    return Service(
        name="watcher",
        port=None,
        command=(sys.executable, "-m", "flows", "watch"),
        env=_flows_env(place, "watcher"),
        answers=lambda since: True,
        needs=("prefect", "s3"),
        prepare=lambda: place.data("watcher").mkdir(parents=True, exist_ok=True),
        cwd=place.root,
    )


def _flows_env(place: Place, name: str) -> dict[str, str]:
    """Of a process that runs this project's flows."""
    return clients.clean() | clients.client(place) | worker.env(place.root) | {"PREFECT_HOME": str(place.data(name))}


def _pools(place: Place) -> None:
    for name in (place.settings.work_pool, place.settings.train_pool):
        prefect_server.make_pool(clients.api(place), name)


def _deploy(place: Place) -> None:
    worker.deploy(place.root, place.settings, _flows_env(place, "worker"))


# In the order of start; a service comes after what it needs.
SERVICES: dict[str, Callable[[Place, Secrets], Service]] = {
    "postgres": _postgres,
    "s3": _s3,
    "prefect": _prefect,
    "mlflow": _mlflow,
    "worker": _worker,
    "watcher": _watcher,
}
# PostgreSQL's fast shutdown; at SIGTERM it would wait for every client to leave.
SIGNALS = {"postgres": signal.SIGINT}
# What ends together, first to last, so that nobody loses a server that it still needs; and how many seconds each may
# take before it is killed: a database is given the most, since after a kill its next start is a recovery.
ENDINGS = ((("worker", "watcher", "mlflow"), 3.0), (("prefect",), 2.0), (("postgres", "s3"), 4.0))


def signals(names: tuple[str, ...]) -> dict[str, signal.Signals]:
    """The signal that ends each."""
    return {name: SIGNALS.get(name, signal.SIGTERM) for name in names}
