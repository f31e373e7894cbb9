"""A work pool of Prefect: ask for a flow run of a deployment there, look how it goes, call it off."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from uuid import UUID

import httpx

from pvqae.core.errors import PvqaeError

Kind = Literal["waiting", "running", "done", "failed", "crashed", "cancelled"]
KINDS: dict[str, Kind] = {
    "SCHEDULED": "waiting",
    "PENDING": "waiting",
    "RUNNING": "running",
    "PAUSED": "waiting",
    "CANCELLING": "running",
    "COMPLETED": "done",
    "FAILED": "failed",
    "CRASHED": "crashed",
    "CANCELLED": "cancelled",
}


class PoolError(PvqaeError):
    """The pool does not do what was asked for; the text says what to start or to repair."""


@dataclass(frozen=True)
class State:
    kind: Kind
    message: str = ""


class Pool(Protocol):
    """What the flows need of a work pool; `Prefect` is the real one, `Fake` the twin."""

    def ask(self, parameters: Mapping[str, Any], key: str, title: str) -> str: ...
    def state(self, run: str) -> State: ...
    def cancel(self, run: str) -> None: ...
    def workers(self) -> int: ...


class Prefect:
    """The deployment `deployment` ("flow/name") on the work pool `name`."""

    def __init__(self, name: str, deployment: str) -> None:
        self._name, self._deployment = name, deployment

    def ask(self, parameters: Mapping[str, Any], key: str, title: str) -> str:
        """Start a run, or take over one that still runs for the same `key`; returns its id.

        Raises `PoolError` when the deployment is unknown.
        """
        from prefect import get_client
        from prefect.deployments import run_deployment
        from prefect.exceptions import ObjectNotFound

        if found := self._unfinished(key):
            return found
        try:
            asked: dict[str, Any] = {
                "parameters": dict(parameters),
                "timeout": 0,
                "tags": [key],
                "flow_run_name": title,
            }
            run: Any = run_deployment(self._deployment, **asked)
        except ObjectNotFound:
            with get_client(sync_client=True) as client:
                where = client.api_url
            raise PoolError(
                f"{self._deployment}: expected this deployment at {where}, found none; run `python -m flows deploy`"
            ) from None
        return str(run.id)

    def _unfinished(self, key: str) -> str:
        asked = {
            "flow_runs": {
                "tags": {"all_": [key]},
                "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}},
            }
        }
        found = self._request("POST", "/flow_runs/filter", asked).json()
        return str(found[0]["id"]) if found else ""

    def state(self, run: str) -> State:
        found = self._request("GET", f"/flow_runs/{run}").json()["state"]
        return State(KINDS[found["type"]], found.get("message") or "")

    def cancel(self, run: str) -> None:
        """Its worker ends the run with all that it started."""
        state = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        self._request("POST", f"/flow_runs/{UUID(run)}/set_state", state)

    def workers(self) -> int:
        """How many workers of the pool gave a sign of life lately."""
        found = self._request("POST", f"/work_pools/{self._name}/workers/filter", {}).json()
        return sum(worker["status"] == "ONLINE" for worker in found)

    def _request(
        self, method: Literal["GET", "POST"], path: str, json: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        from prefect import get_client

        with get_client(sync_client=True) as client:
            return client.request(method, path, json=json)  # type: ignore[arg-type]


@dataclass
class Fake:
    """Twin in memory: each asked run goes through `course`, one state for each look."""

    course: list[State] = field(default_factory=lambda: [State("waiting"), State("running"), State("done")])
    online: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)

    def ask(self, parameters: Mapping[str, Any], key: str, title: str) -> str:
        self.asked.append(dict(parameters))
        return f"run-{len(self.asked)}"

    def state(self, run: str) -> State:
        look = self.looks[run] = self.looks.get(run, -1) + 1
        return self.course[min(look, len(self.course) - 1)]

    def cancel(self, run: str) -> None:
        self.cancelled.append(run)

    def workers(self) -> int:
        return self.online
