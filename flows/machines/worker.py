"""A worker of this machine, which runs what a work pool asks for with the code of this folder, and the deployments."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.adapters.prefect_server import PrefectApi
from flows.core import environment
from pvqae.core import config
from pvqae.core.errors import ConfigError, PvqaeError

DEVICE, THREADS = "PVQAE_DEVICE", "PVQAE_THREADS"


def command(pool: str, name: str, limit: int) -> list[str]:
    """Return the command line of a process worker of `pool`."""
    words = ["worker", "start", "--pool", pool, "--type", "process", "--name", name]
    return [sys.executable, "-m", "prefect", *words, "--limit", str(limit), "--no-create-pool-if-not-found"]


def env(root: Path, device: str = "", threads: int = 0) -> dict[str, str]:
    """Return what flow runs of the worker inherit: where the project is, the GPU, the threads."""
    found = {environment.ROOT: str(root), "PYTHONPATH": str(root), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    if device:
        found |= {DEVICE: device} | ({"CUDA_VISIBLE_DEVICES": device} if device.isdigit() else {})
    return found | ({THREADS: str(threads)} if threads else {})


def start(root: Path, pool: str, name: str, limit: int, device: str, threads: int) -> None:
    """Become the worker. Raises `ConfigError` without a server."""
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "PREFECT_API_URL is not set: the address of a Prefect server, e.g. http://server:4200/api; "
            "set it, or start one on this machine: python -m flows services up"
        )
    words = command(pool, name, limit)
    os.chdir(root)
    os.execve(words[0], words, {**os.environ, **env(root, device, threads)})


_FILE = Path("infra") / "prefect.yaml"
_PATIENCE = 90.0  # seconds without a sign of life after which a run has crashed; signs come every 30 s


def deploy(root: Path, settings: config.Services, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Register all deployments; those that exist are brought up to date. Return their names, FLOW/DEPLOYMENT.

    Raises `ConfigError` without a server, `PvqaeError` with Prefect's words when it refuses.
    """
    if not environ.get("PREFECT_API_URL"):
        raise ConfigError("PREFECT_API_URL is not set: there is no Prefect server; run `python -m flows services up`")
    words = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(_FILE)]
    pools = {"PVQAE_WORK_POOL": settings.work_pool, "PVQAE_TRAIN_POOL": settings.train_pool}  # what the file reads
    env = {**environ, **pools, "PYTHONPATH": str(root), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PvqaeError(f"{_FILE}: the server refused it:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    PrefectApi(environ["PREFECT_API_URL"]).make_heartbeat(_PATIENCE)
    return tuple(re.findall(r"Deployment '([^']+)'", done.stdout))
