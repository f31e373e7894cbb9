"""Quick looks at servers: who answers, what is there; and the databases and buckets that the local services need."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from flows.adapters import prefect_server
from flows.core.lineage import NOTE, OURS, RETIRED

if TYPE_CHECKING:  # all three are slow to import, and psycopg2 is there only with the extra `services`
    import boto3
    import psycopg2

_QUICK = 3.0  # seconds for one answer
_CHAMPIONS = f"""select m.name, a.version from registered_models m
left join registered_model_aliases a on a.name = m.name and a.alias = 'champion' where m.name like '{OURS}%'"""
_ENDED = f"select name, value from registered_model_tags where key = '{NOTE}{RETIRED}' and value <> ''"


class ServerProbe:
    """Looks at the servers themselves; nothing is changed."""

    def answers(self, url: str) -> bool:
        """Tell whether `url` answers 200."""
        return prefect_server.answers(url, _QUICK)

    def pools(self, api: str) -> dict[str, int]:
        """Return work pool of a Prefect server → its workers with a recent sign of life. Raises `OSError`."""
        names = [pool["name"] for pool in _post(f"{api}/work_pools/filter")]
        asked = {name: _post(f"{api}/work_pools/{name}/workers/filter") for name in names}
        return {name: sum(worker["status"] == "ONLINE" for worker in found) for name, found in asked.items()}

    def champions(self, uri: str) -> dict[str, str]:
        """Return model → its champion's version or "", asked without MLflow's client, whose import takes seconds.

        Raises `OSError` for a registry that can't be read, or of another kind than sqlite and http.
        """
        if uri.startswith("sqlite:///"):
            rows = _rows(Path(uri.removeprefix("sqlite:///")), _CHAMPIONS)
            return {name: str(version or "") for name, version in rows}
        if not uri.startswith("http"):
            raise OSError(f"only sqlite and http are looked at, found {urlsplit(uri).scheme}")
        found: dict[str, str] = {}
        for model in _models(uri):
            aliases = {alias["alias"]: str(alias["version"]) for alias in model.get("aliases", ())}
            found[model["name"]] = aliases.get("champion", "")
        return found

    def retired(self, uri: str) -> frozenset[str]:
        """Return the models whose class is made no more, by their notes; asked as `champions` is."""
        if uri.startswith("sqlite:///"):
            return frozenset(name for name, _ in _rows(Path(uri.removeprefix("sqlite:///")), _ENDED))
        return frozenset(model["name"] for model in _models(uri) if _ended(model))

    def trouble(self, remote: Mapping[str, str]) -> str:
        """Return why DVC's remote can't be reached, "" if it can; `remote` is its section of DVC's config."""
        url = urlsplit(remote["url"])
        if url.scheme == "s3":
            return _bucket_trouble(url.netloc, remote)
        if url.scheme and url.scheme != "file":
            return ""  # of another kind: DVC itself will tell
        folder = Path(url.path)
        return "" if folder.is_dir() or not folder.exists() else "is no folder"


def _post(url: str) -> list[dict[str, Any]]:
    answer = requests.post(url, json={}, timeout=_QUICK)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()
    return found


def _models(uri: str) -> Iterator[dict[str, Any]]:
    """Yield our models of a tracking server."""
    where = f"{uri}/api/2.0/mlflow/registered-models/search"
    asked = {"max_results": "1000", "filter": f"name LIKE '{OURS}%'"}
    while True:
        answer = requests.get(where, params=asked, timeout=_QUICK)
        answer.raise_for_status()
        found = answer.json()
        yield from (model for model in found.get("registered_models", []) if model["name"].startswith(OURS))
        if not (token := found.get("next_page_token")):
            return
        asked["page_token"] = token


def _ended(model: dict[str, Any]) -> bool:
    return any(tag["key"] == NOTE + RETIRED and tag["value"] for tag in model.get("tags", ()))


def _rows(file: Path, query: str) -> list[tuple[str, Any]]:
    if not file.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=_QUICK)) as database:
            return list(database.execute(query))
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}") from None


def _s3_client(profile: str | None, **settings: str | None) -> "boto3.client":
    import boto3
    from botocore.config import Config

    quick = Config(connect_timeout=_QUICK, read_timeout=_QUICK, retries={"total_max_attempts": 1})
    return boto3.session.Session(profile_name=profile).client("s3", config=quick, **settings)


def _bucket_trouble(bucket: str, remote: Mapping[str, str]) -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    keys = {f"aws_{key}": remote[key] for key in ("access_key_id", "secret_access_key") if key in remote}
    place = {"endpoint_url": remote.get("endpointurl"), "region_name": remote.get("region")}
    try:
        _s3_client(remote.get("profile"), **place, **keys).head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        return str(error)
    return ""


class S3Probe:
    """The S3 server at `endpoint`, asked with the keys of its administrator."""

    def __init__(self, endpoint: str, key_id: str, secret: str) -> None:
        self._endpoint = endpoint
        self._keys = {"aws_access_key_id": key_id, "aws_secret_access_key": secret}

    def answers(self) -> bool:
        """Tell whether it lists its buckets."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def make_buckets(self, names: Sequence[str]) -> None:
        """Make the buckets that do not exist."""
        for name in set(names) - self._buckets():
            self._client().create_bucket(Bucket=name)

    def _buckets(self) -> set[str]:
        return {bucket["Name"] for bucket in self._client().list_buckets()["Buckets"]}

    def _client(self) -> "boto3.client":
        return _s3_client(None, endpoint_url=self._endpoint, region_name="us-east-1", **self._keys)


class PostgresProbe:
    """The PostgreSQL server at `port` of this machine; `password_file` is in the form of ~/.pgpass."""

    def __init__(self, port: int, password_file: Path) -> None:
        self._port, self._password_file = port, password_file

    def answers(self) -> bool:
        """Tell whether it lets us in."""
        import psycopg2

        try:
            self._connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def make_database(self, name: str) -> None:
        """Make the database unless it exists."""
        with closing(self._connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("select 1 from pg_database where datname = %s", (name,))
                if not cursor.fetchone():
                    cursor.execute(f'create database "{name}"')

    def _connect(self) -> "psycopg2.extensions.connection":
        import psycopg2

        where = {"host": "127.0.0.1", "port": self._port, "user": "pvqae", "dbname": "postgres"}
        return psycopg2.connect(**where, passfile=str(self._password_file), connect_timeout=2)
