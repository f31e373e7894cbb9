"""Prefect's server: asked over HTTP alone, and started for one command where no other is known.

The temporary server starts while the command still imports. Prefect would start the same one itself, but only after all
imports, and with another second of them for the server's code in this process, which does not need it.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import requests

from flows.core import shared_files
from flows.core.processes import end_groups
from pvqae.core.errors import PvqaeError

_QUICK = 2.0  # seconds for one answer of a server on this machine


def answers(url: str, patience: float = _QUICK) -> bool:
    """Tell whether `url` answers 200 within `patience` seconds."""
    try:
        return requests.get(url, timeout=patience).status_code == 200
    except requests.RequestException:
        return False


_SILENT = "pvqae: a run without a sign of life has crashed"


class PrefectApi:
    """The API of a lasting server at `api`, .../api: its work pools, automations and workers."""

    def __init__(self, api: str) -> None:
        self._api = api

    def make_pool(self, pool: str) -> None:
        """Make a process work pool, unless it exists."""
        made = requests.post(f"{self._api}/work_pools/", json={"name": pool, "type": "process"}, timeout=10)
        if made.status_code != 409:
            made.raise_for_status()

    def make_heartbeat(self, patience: float) -> None:
        """Make an automation: a flow run whose machine died is Crashed after `patience` seconds, not left Running."""
        ends = ["Completed", "Failed", "Cancelled", "Crashed"]
        trigger = {
            "type": "event",
            "posture": "Proactive",
            "after": ["prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)],
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": patience,
        }
        message = f"no sign of life for {patience:.0f} s: the machine or its network is gone"
        action = {"type": "change-flow-run-state", "state": "CRASHED", "message": message}
        body = {"name": _SILENT, "enabled": True, "trigger": trigger, "actions": [action]}
        asked = {"automations": {"name": {"any_": [_SILENT]}}}
        found = requests.post(f"{self._api}/automations/filter", json=asked, timeout=10)
        found.raise_for_status()
        for known in found.json():
            requests.delete(f"{self._api}/automations/{known['id']}", timeout=10).raise_for_status()
        requests.post(f"{self._api}/automations/", json=body, timeout=10).raise_for_status()

    def worker_online(self, pool: str, worker: str, since: float) -> bool:
        """Tell whether the worker has shown a sign of life after `since` (seconds of the epoch)."""
        try:
            found = requests.post(f"{self._api}/work_pools/{pool}/workers/filter", json={}, timeout=_QUICK)
            found.raise_for_status()
            rows = [row for row in found.json() if row["name"] == worker and row["status"] == "ONLINE"]
            return any(datetime.fromisoformat(row["last_heartbeat_time"]).timestamp() >= since - 1 for row in rows)
        except (requests.RequestException, ValueError):
            return False


_API = "PREFECT_API_URL"
_OWN = "PVQAE_TEMPORARY_PREFECT"  # the same address, where it ends with the command
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def begin(environ: MutableMapping[str, str] = os.environ) -> Callable[[], None]:
    """Start a server, if needed, and point `environ` at it. Return a function that waits until it answers.

    Call this before Prefect is imported, which reads `environ` then, and after `ProcessReaper`, which ends the server
    of a killed flow. It ends with this process.
    """
    if not _needed(environ):
        return lambda: None
    # Two servers that make a fresh database at once break it: the first that answers has made it.
    home, alone = Path(environ["PREFECT_HOME"]), ExitStack()
    made = home / f"migrated-{version('prefect')}"
    if not made.exists():
        alone.enter_context(shared_files.held(home / "migration.lock"))
    with socket.socket() as found:  # given to the server as it is: no other can take its port meanwhile
        found.bind(("127.0.0.1", 0))
        found.listen(128)
        address = f"http://127.0.0.1:{found.getsockname()[1]}"
        process = _started(found.fileno(), environ)
    atexit.register(end_groups, [process], _GRACE)
    environ[_API] = environ[_OWN] = f"{address}/api"
    environ.setdefault("PREFECT_UI_URL", "")  # no pages: its log would name an address that ends with the command
    print(f"starting a temporary Prefect server on {address}", file=sys.stderr, flush=True)
    patience = float(environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])

    def wait() -> None:
        with alone:
            _await(process, f"{address}/api/health", patience)
            made.touch()

    return wait


def lasting(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Return `environ` without an address that ends with this command."""
    own = environ.get(_OWN)
    return {key: value for key, value in environ.items() if not (key == _API and value == own)}


def _needed(environ: MutableMapping[str, str]) -> bool:
    """Tell whether no address is set, no profile may set one, and the user has not forbidden such servers."""
    if "prefect" in sys.modules:  # it has read its settings, and will start its own
        return False
    allowed = environ.get("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true").lower() in ("true", "1")
    return allowed and not environ.get(_API) and not (Path(environ["PREFECT_HOME"]) / "profiles.toml").exists()


def _started(listening: int, environ: MutableMapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--fd", str(listening), "--lifespan", "on", "--log-level", "error"]
    own = {"PREFECT_UI_ENABLED": "false", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return subprocess.Popen(
        command,
        env={**environ, **own},
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout is the command's own
        pass_fds=(listening,),
        start_new_session=True,  # Ctrl-C is the flow's, which still has to tell the server how it ended
    )


def _await(process: subprocess.Popen[bytes], health: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not answers(health):
        if process.poll() is not None or time.monotonic() > deadline:
            raise PvqaeError(
                f"the temporary Prefect server did not start (exit {process.returncode}), see above; its database is "
                f"in PREFECT_HOME, {os.environ.get('PREFECT_HOME')}. A lasting one: python -m flows services up"
            )
