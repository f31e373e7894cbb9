"""The project's own tracking database.

PostgreSQL and S3 of `make services`: whether they answer, and the databases and buckets in them.
"""

import contextlib
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import boto3
import psycopg2
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flows.core import locks
from pvqae.core.errors import PvqaeError


def prepare_ahead(root: Path) -> None:
    """`prepare` beside whatever comes first, the start of Prefect's server say: the first time it takes seconds. Who
    needs the database asks for it all the same, waits, and hears of an error."""

    def work() -> None:
        with contextlib.suppress(PvqaeError):
            prepare(root)

    threading.Thread(target=work, daemon=True).start()


def prepare(root: Path) -> str:
    """The project's own tracking database below `root`/.pvqae, migrated; returns its address.

    Several first touches of a fresh database at once break it, so it is migrated once, under a lock.
    """
    home = root / ".pvqae" / "mlflow"
    uri, marker = f"sqlite:///{home / 'mlflow.db'}", home / f"migrated-{version('mlflow')}"
    with locks.held(home / "migration.lock"):
        if not marker.exists():
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PvqaeError(f"MLflow's database {home / 'mlflow.db'} can't be prepared:\n{done.stderr[-2000:]}")
            marker.touch()
    return uri


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
