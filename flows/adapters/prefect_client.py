"""Prefect as flows use it: events, on which its automations start deployments, and runs on a work pool."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import requests

from pvqae.core.errors import PvqaeError


class Notifier(Protocol):
    """What the flows need of an event bus: `PrefectEvents`, `HttpEvents`, or `fakes.FakeNotifier` in tests."""

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None: ...


class PrefectEvents:
    """Events of the Prefect server that this process talks to."""

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        """Send an event and wait until it left: the process may end right after."""
        from prefect.events import emit_event
        from prefect.events.worker import EventsWorker

        emit_event(event=event, resource={"prefect.resource.id": resource}, payload=dict(payload))
        EventsWorker.instance().wait_until_empty()


@dataclass(frozen=True)
class HttpEvents:
    """Events without Prefect's client, for small processes; `api` is the server's address, .../api."""

    api: str

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        """Send an event; it has arrived when this returns. Raises `OSError` when it did not."""
        body = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": event,
            "resource": {"prefect.resource.id": resource},
            "payload": dict(payload),
        }
        requests.post(f"{self.api}/events", json=[body], timeout=10).raise_for_status()


Kind = Literal["waiting", "running", "done", "failed", "crashed", "cancelled"]
_KINDS: dict[str, Kind] = {
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
    """How a run goes; `message` is Prefect's word."""

    kind: Kind
    message: str = ""


class PrefectPool:
    """The deployment `deployment` ("flow/name") on the work pool `name`."""

    def __init__(self, name: str, deployment: str) -> None:
        self._name, self._deployment = name, deployment

    def ask(self, parameters: Mapping[str, Any], key: str, title: str) -> str:
        """Start a run, or take over one that still runs for the same `key`; return its id.

        Raises `PoolError` when the deployment is unknown.
        """
        from prefect import get_client
        from prefect.deployments import run_deployment
        from prefect.exceptions import ObjectNotFound

        unfinished = {"tags": {"all_": [key]}, "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
        if found := self._request("POST", "/flow_runs/filter", {"flow_runs": unfinished}):
            return str(found[0]["id"])
        try:
            named: dict[str, Any] = {"tags": [key], "flow_run_name": title}
            run: Any = run_deployment(self._deployment, parameters=dict(parameters), timeout=0, **named)
        except ObjectNotFound:
            with get_client(sync_client=True) as client:
                where = client.api_url
            raise PoolError(
                f"{self._deployment}: there is no such deployment at {where}; run `python -m flows deploy`"
            ) from None
        return str(run.id)

    def state(self, run: str) -> State:
        """Return how the run goes now."""
        found = self._request("GET", f"/flow_runs/{run}")["state"]
        return State(_KINDS[found["type"]], found.get("message") or "")

    def cancel(self, run: str) -> None:
        """Have the run's worker end it with all that it started."""
        state = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        self._request("POST", f"/flow_runs/{uuid.UUID(run)}/set_state", state)

    def workers(self) -> int:
        """Return how many workers of the pool gave a sign of life lately."""
        found = self._request("POST", f"/work_pools/{self._name}/workers/filter", {})
        return sum(worker["status"] == "ONLINE" for worker in found)

    def _request(self, method: Literal["GET", "POST"], path: str, json: Mapping[str, Any] | None = None) -> Any:
        from prefect import get_client

        with get_client(sync_client=True) as client:
            return client.request(method, path, json=json).json()  # type: ignore[arg-type]
