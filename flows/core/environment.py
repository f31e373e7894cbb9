"""The environment of every process that a flow starts, set before prefect or mlflow are imported.

Both read their settings at import, so this module imports neither, nor anything that does.
"""

import hashlib
import json
import os
import platform
import re
import socket
import sys
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from pvqae.cli.processes import ADDRESS
from pvqae.core.errors import ConfigError
from pvqae.core.layout import find_root as find_root
from pvqae.core.layout import outside_hooks

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",  # MLflow takes only "true", not "1"
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # bars of one file each, between the log's lines
}


_DVC_CACHE = Path("/var/tmp/dvc")  # DVC's own, of all users and projects
COMMANDS = ".pvqae/bin"  # of a workspace
FORKSERVER = ".pvqae/forkserver"  # its socket in a workspace, where DVC runs the stages; if a flow has one there
_REPAIR = "python -m flows services up (or down, to go on without them)"


def prepare(root: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Complete `environ` for a project at `root`. What the user has set stays as it is.

    Raises `ConfigError` when services of this project are meant to run, but do not answer.
    """
    own = {"PREFECT_HOME": str(root / ".pvqae" / "prefect"), "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore"}
    for key, value in (QUIET | own).items():
        environ.setdefault(key, value)
    if not os.access(_DVC_CACHE if _DVC_CACHE.exists() else _DVC_CACHE.parent, os.W_OK):  # as some containers have it
        environ.setdefault("DVC_SITE_CACHE_DIR", str(root / ".pvqae" / "dvc"))
    Path(environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only
    _use_services(root, environ)


def _use_services(root: Path, environ: MutableMapping[str, str]) -> None:
    """Point `environ` at the running services of `root`, whose environment `flows.machines.control` keeps in env.json.

    An AWS client takes its address and its key from several variables, so of those either all are the services' or
    none. Raises `ConfigError` when a service that would be used does not answer: a client would wait for minutes.
    """
    known = of_services(root)
    own_aws = any(key.startswith(("AWS_ENDPOINT", "AWS_ACCESS_KEY", "AWS_PROFILE", "AWS_SHARED")) for key in environ)
    for key, value in known.items():
        if key in environ or (own_aws and key.startswith("AWS_")):
            continue
        if value.startswith("http") and not _listens(value):
            raise ConfigError(
                f"{key}: nothing answers at {value}, but {services_file(root)} says that a service runs; run: {_REPAIR}"
            )
        environ[key] = value


def services_file(root: Path) -> Path:
    """Return the file that exists while the services of `root` are meant to run."""
    return root / ".pvqae" / "services" / "env.json"


def of_services(root: Path) -> dict[str, str]:
    """Return the environment that points clients at the services of `root`; empty unless they are meant to run.

    Raises `ConfigError` when its file is damaged, or that of another project, of which this one is a copy.
    """
    file = services_file(root)
    try:
        known: dict[str, str] = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ConfigError(
            f"{file}: expected the services' environment as JSON, found damaged text; run: {_REPAIR}"
        ) from None
    key_file = Path(known.get("AWS_SHARED_CREDENTIALS_FILE", file))
    if key_file.parent.name == "services" and key_file.parent != file.parent:  # a copy must not write into its original
        raise ConfigError(
            f"{file}: expected services of {root}, found those of {key_file.parents[2]}, whose folder was moved or "
            f"copied here; run: {_REPAIR}"
        )
    return known


def shown(address: str) -> str:
    """Return the address, or a text with addresses, without the names and passwords that they may carry."""
    return re.sub(r"//[^/\s\"]*@", "//", address)


def _listens(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 80), timeout=2).close()
    except OSError:
        return False
    return True


def for_stages(workspace: Path) -> dict[str, str]:
    """Return the environment of stages: this interpreter's `pvqae`, the code of `workspace` before any installed.

    A `pvqae` of the workspace's own (`COMMANDS`), for code whose command this installation would not find, comes first.

    Thread counts are not set here: the stages set them themselves, so that a plain `dvc repro` gives the same files.
    """
    environ = outside_hooks(os.environ)  # a workspace has a repository of its own
    places = [str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]
    own = workspace / COMMANDS
    environ["PATH"] = os.pathsep.join([str(own), *places] if own.is_dir() else places)
    environ["PYTHONPATH"] = str(workspace)
    environ["PYTHONUNBUFFERED"] = "1"  # live lines through a pipe
    environ[ADDRESS] = FORKSERVER
    return environ


def fingerprint() -> str:
    """Return a hash of the interpreter, the machine type and every installed package's version (16 hex digits)."""
    packages = sorted(f"{item.name}=={item.version}" for item in metadata.distributions())
    text = "\n".join([platform.python_version(), platform.system(), platform.machine(), *packages])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


ROOT = "PVQAE_ROOT"  # of the project whose worker runs a flow


def project_of(root: str = "") -> Path:
    """Return the project that a flow works on: the one it was given, else that of the worker that runs it.

    Raises `ConfigError` when there is none.
    """
    found = Path(root).resolve() if root else find_root(Path(os.environ.get(ROOT, ".")).resolve())
    if found is None:
        raise ConfigError(f"{ROOT} names no project's folder; start the worker with `python -m flows worker`")
    return found
