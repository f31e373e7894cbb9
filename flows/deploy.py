"""Register the deployments of infra/prefect.yaml at the Prefect server."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.adapters import prefect_server
from pvqae import config
from pvqae.errors import ConfigError, PvqaeError

FILE = Path("infra") / "prefect.yaml"
PATIENCE = 90.0  # seconds without a sign of life after which a run has crashed; signs come every 30 s


def pools(settings: config.Services) -> dict[str, str]:
    """What infra/prefect.yaml reads the names of the work pools from."""
    return {"PVQAE_WORK_POOL": settings.work_pool, "PVQAE_TRAIN_POOL": settings.train_pool}


def deploy(root: Path, settings: config.Services, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Register all deployments; those that exist are brought up to date. Returns their names, FLOW/DEPLOYMENT.

    Raises `ConfigError` without a server, `PvqaeError` with Prefect's words when it refuses.
    """
    if not environ.get("PREFECT_API_URL"):
        raise ConfigError("PREFECT_API_URL: expected a Prefect server, found none; run `python -m flows services up`")
    words = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)]
    env = {**environ, **pools(settings), "PYTHONPATH": str(root), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PvqaeError(f"{FILE}: the server refused it:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    prefect_server.make_heartbeat(environ["PREFECT_API_URL"], PATIENCE)
    return tuple(re.findall(r"Deployment '([^']+)'", done.stdout))
