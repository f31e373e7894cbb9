"""PostgreSQL and S3 of `make services`: whether they answer, and the databases and buckets in them."""

from pathlib import Path

import boto3
import psycopg2
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
