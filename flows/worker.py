"""A worker of this machine: runs what a work pool asks for, with the code and the DVC remote of this folder."""

import os
import sys
from pathlib import Path

from flows import environment
from pvqae.errors import ConfigError

DEVICE, THREADS = "PVQAE_DEVICE", "PVQAE_THREADS"


def command(pool: str, name: str, limit: int) -> list[str]:
    """The command line of a process worker of `pool`."""
    words = ["worker", "start", "--pool", pool, "--type", "process", "--name", name]
    return [sys.executable, "-m", "prefect", *words, "--limit", str(limit), "--no-create-pool-if-not-found"]


def env(root: Path, device: str = "", threads: int = 0) -> dict[str, str]:
    """What flow runs of the worker inherit: where the project is, the GPU, the threads."""
    found = {environment.ROOT: str(root), "PYTHONPATH": str(root), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    if device:
        found |= {DEVICE: device} | ({"CUDA_VISIBLE_DEVICES": device} if device.isdigit() else {})
    return found | ({THREADS: str(threads)} if threads else {})


def start(root: Path, pool: str, name: str, limit: int, device: str, threads: int) -> None:
    """Become the worker. Raises `ConfigError` without a server."""
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "PREFECT_API_URL: expected the address of a Prefect server, e.g. http://server:4200/api, found none; "
            "set it, or start one on this machine: python -m flows services up"
        )
    words = command(pool, name, limit)
    os.chdir(root)
    os.execve(words[0], words, {**os.environ, **env(root, device, threads)})
