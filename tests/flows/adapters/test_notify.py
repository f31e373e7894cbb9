import time
from typing import Any

import pytest

from flows.adapters.prefect_client import PrefectEvents


def events(name: str) -> list[dict[str, Any]]:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        asked = {"filter": {"event": {"name": [name]}}}
        found: list[dict[str, Any]] = client.request("POST", "/events/filter", json=asked).json()["events"]
    return found


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("default")  # of Prefect's own client
def test_an_event_reaches_the_server() -> None:
    PrefectEvents().emit("pvqae.drift.detected", "pvqae.dataset.parts", {"class": "a", "ks": {"brightness": 0.6}})
    deadline = time.monotonic() + 60
    while not (found := events("pvqae.drift.detected")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found[0]["resource"]["prefect.resource.id"] == "pvqae.dataset.parts"
    assert found[0]["payload"] == {"class": "a", "ks": {"brightness": 0.6}}
