"""Clients of the servers themselves: whether they answer, and the databases, buckets and pools in them."""

from datetime import datetime
from pathlib import Path

import boto3
import psycopg2
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

QUICK = 2.0  # seconds for one answer of a server on this machine


def _connect(port: int, password_file: Path, database: str) -> "psycopg2.extensions.connection":
    return psycopg2.connect(
        host="127.0.0.1", port=port, user="pvqae", dbname=database, passfile=str(password_file), connect_timeout=2
    )


def postgres_answers(port: int, password_file: Path) -> bool:
    try:
        _connect(port, password_file, "postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


def make_database(port: int, password_file: Path, name: str) -> None:
    """Make the database unless it exists."""
    connection = _connect(port, password_file, "postgres")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", (name,))
            if not cursor.fetchone():
                cursor.execute(f'create database "{name}"')
    finally:
        connection.close()


def _s3(endpoint: str, key_id: str, secret: str) -> "boto3.client":
    quick = Config(connect_timeout=QUICK, read_timeout=QUICK, retries={"total_max_attempts": 1})
    keys = {"aws_access_key_id": key_id, "aws_secret_access_key": secret}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=quick, **keys)


def s3_answers(endpoint: str, key_id: str, secret: str) -> bool:
    try:
        _s3(endpoint, key_id, secret).list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def make_buckets(endpoint: str, key_id: str, secret: str, names: tuple[str, ...]) -> None:
    """Make the buckets that do not exist."""
    client = _s3(endpoint, key_id, secret)
    found = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in found:
            client.create_bucket(Bucket=name)


def answers(url: str) -> bool:
    """Whether `url` answers 200."""
    try:
        return requests.get(url, timeout=QUICK).status_code == 200
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
