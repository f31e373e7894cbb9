"""The environment of every process that a flow starts, set before prefect or mlflow are imported.

Both read their settings at import, so this module imports neither, nor anything that does.
"""

import hashlib
import os
import platform
import sys
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

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


def prepare(root: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Complete `environ` for a project at `root`. What the user has set stays as it is."""
    own = {"PREFECT_HOME": str(root / ".pvqae" / "prefect"), "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore"}
    for key, value in (QUIET | own).items():
        environ.setdefault(key, value)
    Path(environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only


def for_stages(workspace: Path) -> dict[str, str]:
    """The environment of stage commands: this interpreter's `pvqae`, with the code of `workspace` before any installed.

    Thread counts are not set here: the stages set them themselves, so that a plain `dvc repro` gives the same files.
    """
    environ = dict(os.environ)
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    environ["PYTHONPATH"] = str(workspace)
    environ["PYTHONUNBUFFERED"] = "1"  # live lines through a pipe
    # Inside a git hook git points these at the outer repository; a workspace has its own.
    for key in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_PREFIX"):
        environ.pop(key, None)
    return environ


def fingerprint() -> str:
    """Hash of the interpreter, the machine type and every installed package's version (16 hex digits)."""
    packages = sorted(f"{item.name}=={item.version}" for item in metadata.distributions())
    text = "\n".join([platform.python_version(), platform.system(), platform.machine(), *packages])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_root(start: Path) -> Path | None:
    """The nearest folder at or above `start` that holds params.yaml and dvc.yaml."""
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    return None
