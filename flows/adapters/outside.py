"""A quick look at what a project needs outside of its folder: who answers, what is there. Nothing is changed."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests

from flows.adapters import prefect_server

QUICK = 3.0  # seconds for one answer
CHAMPIONS = """select m.name, a.version from registered_models m
left join registered_model_aliases a on a.name = m.name and a.alias = 'champion' where m.name like 'pvqae-%'"""


class Outside(Protocol):
    """What the doctor asks; `Real` looks, `Twin` is in memory."""

    def answers(self, url: str) -> bool: ...
    def pools(self, api: str) -> dict[str, int]: ...
    def champions(self, uri: str) -> dict[str, str]: ...
    def trouble(self, remote: Mapping[str, str]) -> str: ...


class Real:
    def answers(self, url: str) -> bool:
        """Whether `url` answers 200."""
        return prefect_server.answers(url, QUICK)

    def pools(self, api: str) -> dict[str, int]:
        """Work pool of a Prefect server → its workers with a sign of life lately. Raises `OSError`."""
        names = [pool["name"] for pool in _post(f"{api}/work_pools/filter")]
        asked = {name: _post(f"{api}/work_pools/{name}/workers/filter") for name in names}
        return {name: sum(worker["status"] == "ONLINE" for worker in found) for name, found in asked.items()}

    def champions(self, uri: str) -> dict[str, str]:
        """Model → its champion's version or "", asked without MLflow's client, whose import takes seconds.

        Raises `OSError` for a registry that can't be read, or of another kind than sqlite and http.
        """
        if uri.startswith("sqlite:///"):
            return _champions_of(Path(uri.removeprefix("sqlite:///")))
        if not uri.startswith("http"):
            raise OSError(f"only sqlite and http are looked at, found {urlsplit(uri).scheme}")
        where = f"{uri}/api/2.0/mlflow/registered-models/search"
        asked = {"max_results": "1000", "filter": "name LIKE 'pvqae-%'"}
        answer = requests.get(where, params=asked, timeout=QUICK)
        answer.raise_for_status()
        models: list[dict[str, Any]] = answer.json().get("registered_models", [])
        aliases = [(model["name"], alias) for model in models for alias in model.get("aliases", ())]
        found = {name: str(alias["version"]) for name, alias in aliases if alias["alias"] == "champion"}
        names = [model["name"] for model in models if model["name"].startswith("pvqae-")]
        return {name: found.get(name, "") for name in names}

    def trouble(self, remote: Mapping[str, str]) -> str:
        """Why DVC's remote can't be reached, "" if it can; `remote` is its section of DVC's config."""
        url = urlsplit(remote["url"])
        if url.scheme == "s3":
            return _bucket_trouble(url.netloc, remote)
        if url.scheme and url.scheme != "file":
            return ""  # of another kind: DVC itself will tell
        folder = Path(url.path)
        return "" if folder.is_dir() or not folder.exists() else "is no folder"


def _post(url: str) -> list[dict[str, Any]]:
    answer = requests.post(url, json={}, timeout=QUICK)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()
    return found


def _champions_of(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=QUICK)) as database:
            return {name: str(version or "") for name, version in database.execute(CHAMPIONS)}
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}") from None


def _bucket_trouble(bucket: str, remote: Mapping[str, str]) -> str:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    quick = Config(connect_timeout=QUICK, read_timeout=QUICK, retries={"total_max_attempts": 1})
    keys = {f"aws_{key}": remote[key] for key in ("access_key_id", "secret_access_key") if key in remote}
    place = {"endpoint_url": remote.get("endpointurl"), "region_name": remote.get("region")}
    try:
        session = boto3.session.Session(profile_name=remote.get("profile"))
        session.client("s3", config=quick, **place, **keys).head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        return str(error)
    return ""


@dataclass
class Twin:
    """In memory: addresses that answer, pools, champions, and what is wrong with the remote."""

    up: tuple[str, ...] = ()
    known_pools: dict[str, int] = field(default_factory=dict)
    known_champions: dict[str, str] = field(default_factory=dict)
    wrong: str = ""

    def answers(self, url: str) -> bool:
        return url.startswith(self.up)

    def pools(self, api: str) -> dict[str, int]:
        return self.known_pools

    def champions(self, uri: str) -> dict[str, str]:
        return self.known_champions

    def trouble(self, remote: Mapping[str, str]) -> str:
        return self.wrong
