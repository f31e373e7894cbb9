"""The project's own tracking database."""

import subprocess
import sys
from pathlib import Path

import mlflow

from flows import locks
from pvqae.errors import PvqaeError


def prepare(root: Path) -> str:
    """The project's own tracking database below `root`/.pvqae, migrated; returns its address.

    Several first touches of a fresh database at once break it, so it is migrated once, under a lock.
    """
    home = root / ".pvqae" / "mlflow"
    uri, marker = f"sqlite:///{home / 'mlflow.db'}", home / f"migrated-{mlflow.__version__}"
    with locks.held(home / "migration.lock"):
        if not marker.exists():
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PvqaeError(f"MLflow's database {home / 'mlflow.db'} can't be prepared:\n{done.stderr[-2000:]}")
            marker.touch()
    return uri
