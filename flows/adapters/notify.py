"""Messages to whoever listens: events of Prefect, on which its automations start deployments."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import requests


class Notifier(Protocol):
    """What the flows need of an event bus; `Prefect` is the real one, `Kept` the twin."""

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None: ...


class Prefect:
    """Events of the Prefect server that this process talks to."""

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        """Send an event and wait until it left: the process may end right after."""
        from prefect.events import emit_event
        from prefect.events.worker import EventsWorker

        emit_event(event=event, resource={"prefect.resource.id": resource}, payload=dict(payload))
        EventsWorker.instance().wait_until_empty()


@dataclass(frozen=True)
class Http:
    """The same without Prefect's client, for small processes; `api` is the server's address, .../api."""

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


@dataclass
class Kept:
    """Twin in memory."""

    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        self.events.append((event, resource, dict(payload)))
