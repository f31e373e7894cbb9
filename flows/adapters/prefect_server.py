"""Servers asked over HTTP alone: whether one answers, and of Prefect the work pools, workers and automations."""

from datetime import datetime

import requests

QUICK = 2.0  # seconds for one answer of a server on this machine


def answers(url: str, patience: float = QUICK) -> bool:
    """Whether `url` answers 200 within `patience` seconds."""
    try:
        return requests.get(url, timeout=patience).status_code == 200
    except requests.RequestException:
        return False


def make_pool(api: str, pool: str) -> None:
    """A process work pool, unless it exists."""
    made = requests.post(f"{api}/work_pools/", json={"name": pool, "type": "process"}, timeout=10)
    if made.status_code != 409:
        made.raise_for_status()


SILENT = "pvqae: a run without a sign of life has crashed"


def make_heartbeat(api: str, patience: float) -> None:
    """An automation: a flow run whose machine died is Crashed after `patience` seconds instead of Running for ever."""
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
    body = {"name": SILENT, "enabled": True, "trigger": trigger, "actions": [action]}
    asked = {"automations": {"name": {"any_": [SILENT]}}}
    found = requests.post(f"{api}/automations/filter", json=asked, timeout=10)
    found.raise_for_status()
    for known in found.json():
        requests.delete(f"{api}/automations/{known['id']}", timeout=10).raise_for_status()
    requests.post(f"{api}/automations/", json=body, timeout=10).raise_for_status()


def worker_online(api: str, pool: str, worker: str, since: float) -> bool:
    """Whether the worker has shown a sign of life after `since` (seconds of the epoch)."""
    try:
        found = requests.post(f"{api}/work_pools/{pool}/workers/filter", json={}, timeout=QUICK)
        found.raise_for_status()
        rows = [row for row in found.json() if row["name"] == worker and row["status"] == "ONLINE"]
        return any(datetime.fromisoformat(row["last_heartbeat_time"]).timestamp() >= since - 1 for row in rows)
    except (requests.RequestException, ValueError):
        return False
