"""Prefect as flows use it: events, on which its automations start deployments, and runs on a work pool."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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


@dataclass(frozen=True)
class Crash:
    """A flow run of a deployment whose process or machine died; `tries`: how often the same was asked for so far."""

    id: str
    deployment: str
    name: str
    parameters: Mapping[str, Any]
    tries: int


class Crashes(Protocol):
    """What the watcher needs to know of flow runs that died: `HttpCrashes`, or `fakes.FakeCrashes` in tests."""

    def unanswered(self) -> list[Crash]: ...
    def ask_again(self, crash: Crash) -> None: ...


_AGAIN, _TRY = "pvqae.again-of:", "pvqae.try:"  # tags of a run: of which it is another try, and which


@dataclass(frozen=True)
class HttpCrashes:
    """Crashed runs of a server, without Prefect's client; `api` is the server's address, .../api."""

    api: str
    deployments: tuple[str, ...]

    def unanswered(self) -> list[Crash]:
        """Return crashed runs of the last day that nobody has asked for again. Raises `OSError`."""
        since = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        runs = {"state": {"type": {"any_": ["CRASHED"]}}, "expected_start_time": {"after_": since}}
        wanted = {"flow_runs": runs, "deployments": {"name": {"any_": list(self.deployments)}}}
        crashed = self._post("/flow_runs/filter", wanted)
        tags = [f"{_AGAIN}{run['id']}" for run in crashed]
        later = self._post("/flow_runs/filter", {"flow_runs": {"tags": {"any_": tags}}}) if tags else []
        answered = {tag for run in later for tag in run["tags"]}
        return [_crash(run) for run in crashed if f"{_AGAIN}{run['id']}" not in answered]

    def ask_again(self, crash: Crash) -> None:
        """Have the deployment run once more with the same parameters. Raises `OSError`."""
        body = {"parameters": dict(crash.parameters), "tags": [f"{_AGAIN}{crash.id}", f"{_TRY}{crash.tries + 1}"]}
        self._post(f"/deployments/{crash.deployment}/create_flow_run", body)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = requests.post(f"{self.api}{path}", json=body, timeout=10)
        answer.raise_for_status()
        return answer.json()


def _crash(run: Mapping[str, Any]) -> Crash:
    tries = [int(tag.removeprefix(_TRY)) for tag in run["tags"] if tag.startswith(_TRY)]
    return Crash(run["id"], run["deployment_id"], run["name"], run["parameters"], max(tries, default=1))


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
