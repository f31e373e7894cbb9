"""The project's own tracking database."""

import contextlib
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

from flows import locks
from pvqae.errors import PvqaeError


def prepare_ahead(root: Path) -> None:
    """`prepare` beside whatever comes first, the start of Prefect's server say: the first time it takes seconds. Who
    needs the database asks for it all the same, waits, and hears of an error."""

    def work() -> None:
        with contextlib.suppress(PvqaeError):
            prepare(root)

    threading.Thread(target=work, daemon=True).start()


def prepare(root: Path) -> str:
    """The project's own tracking database below `root`/.pvqae, migrated; returns its address.

    Several first touches of a fresh database at once break it, so it is migrated once, under a lock.
    """
    home = root / ".pvqae" / "mlflow"
    uri, marker = f"sqlite:///{home / 'mlflow.db'}", home / f"migrated-{version('mlflow')}"
    with locks.held(home / "migration.lock"):
        if not marker.exists():
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PvqaeError(f"MLflow's database {home / 'mlflow.db'} can't be prepared:\n{done.stderr[-2000:]}")
            marker.touch()
    return uri
