"""What the flows need of a tracking server and model registry, and the project's own database for lack of a server."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from flows.core import shared_files
from flows.core.lineage import Owner
from pvqae.core.errors import PvqaeError
from pvqae.core.files import write_text

DATABASE = ".pvqae/mlflow/mlflow.db"  # the project's own, below its root
FLOW = "pvqae.flow"  # tag of a run of a whole flow: which
STORE = "/.pvqae/mlflow/artifacts"
# Every column of MLflow's database that says where files are.
COLUMNS = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "storage_location"), ("model_versions", "source")),
)
_PATIENCE = 60.0  # seconds, for another process that writes


class RegistryError(PvqaeError):
    """The registry does not have what was asked for, or refuses it; `code` is MLflow's word."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Metric:
    """A named figure of a run."""

    key: str
    value: float
    step: int = 0


def as_metrics(figures: Mapping[str, Any], prefix: str = "") -> list[Metric]:
    """Return every number below `figures` under its dotted key; null (no masks) and text are left out."""
    found: dict[str, Metric] = {}
    for key, value in figures.items():
        name = prefix + re.sub(r"[^\w.\- ]", "_", str(key))  # what MLflow accepts in a key
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            found |= {item.key: item for item in as_metrics(value, f"{name}.")}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = Metric(name, float(value))
    return list(found.values())


@dataclass(frozen=True)
class Promotion:
    """One move of an alias; `when` is ISO 8601 in UTC, `from_version` "none" for the first."""

    when: str
    who: str
    alias: str
    from_version: str
    to_version: str
    kind: str  # initial | challenger | gate | rollback | override | migration
    reasons: tuple[str, ...]
    run: str  # with the full verdict among its artifacts
    verdict: str = ""  # of the gate: pass | refused | insufficient; "" where it was not asked
    lineage: Mapping[str, str] = field(default_factory=dict)  # of `to_version`, in short


@dataclass(frozen=True)
class Listed:
    """A version as a list shows it: `when` it was made (ISO 8601, UTC), with all its tags."""

    number: str
    when: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Flown:
    """A run of a whole flow; `status` is MLflow's: RUNNING, FINISHED, FAILED or KILLED. `when` it began."""

    when: str
    status: str
    tags: Mapping[str, str]


class Registry(Protocol):
    """What the flows need of MLflow: `registry.Mlflow`, or `fakes.FakeRegistry` in tests."""

    def start(self, experiment: str, name: str, parent: str | None = None, tags: Mapping[str, str] = {}) -> str: ...
    def finish(self, run: str, status: str = "FINISHED") -> None: ...
    def end_open(self, experiment: str, tags: Mapping[str, str]) -> None: ...
    def tag(self, run: str, tags: Mapping[str, str]) -> None: ...
    def params(self, run: str, values: Mapping[str, str]) -> None: ...
    def metrics(self, run: str, values: Sequence[Metric]) -> None: ...
    def artifact(self, run: str, path: Path, folder: str = "") -> None: ...
    def dataset(self, run: str, name: str, digest: str, source: str) -> None: ...
    def monitored(self, run: str) -> AbstractContextManager[None]: ...
    def log_model(self, run: str, bundle: Path) -> str: ...
    def register(
        self, name: str, run: str, model: str, tags: Mapping[str, str], owner: Owner | None = None, text: str = ""
    ) -> str: ...
    def find(self, name: str, tags: Mapping[str, str]) -> str | None: ...
    def versions_of(self, name: str) -> list[Listed]: ...
    def flows_of(self, experiment: str) -> list[Flown]: ...
    def version_tags(self, name: str, version: str) -> dict[str, str]: ...
    def exists(self, name: str, version: str) -> bool: ...
    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None: ...
    def owners(self, prefix: str) -> dict[str, Owner | None]: ...
    def rename(self, name: str, to: str, owner: Owner) -> None: ...
    def note(self, name: str, key: str, value: str) -> None: ...
    def notes(self, name: str) -> dict[str, str]: ...
    def download(self, name: str, version: str, out: Path) -> Path: ...
    def fetch(self, run: str, folder: str, out: Path) -> Path | None: ...
    def alias(self, name: str, alias: str) -> str | None: ...
    def set_alias(self, name: str, alias: str, version: str) -> None: ...
    def promote(self, name: str, alias: str, entry: Promotion) -> None: ...
    def promotions(self, name: str) -> tuple[Promotion, ...]: ...
    def astray(self, name: str) -> str: ...


def database_of(root: Path) -> str:
    """Return the address of the project's own tracking database."""
    return f"sqlite:///{root / DATABASE}"


def migrated(root: Path) -> Path:
    """Return the file that says that the project's own database is of the installed release of MLflow."""
    return root / ".pvqae" / "mlflow" / f"migrated-{version('mlflow')}"


def own_database(root: Path) -> str:
    """Make the project's own tracking database below `root`/.pvqae, migrated; return its address.

    Several first touches of a fresh database at once break it, so it is migrated once, under a lock. A project that was
    moved or copied since gets its own addresses.
    """
    home = root / ".pvqae" / "mlflow"
    uri, marker = database_of(root), migrated(root)
    with shared_files.held(home / "migration.lock"):
        if not marker.exists():
            if (home / "mlflow.db").exists():
                _migrate(home / "mlflow.db", uri)
            else:  # apart: MLflow's process may outlive a command that was killed, and still be at the one before
                for left in home.glob("new-*"):
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix="new-", dir=home, ignore_cleanup_errors=True) as apart:
                    _migrate(home / "mlflow.db", f"sqlite:///{apart}/mlflow.db")
                    os.replace(Path(apart, "mlflow.db"), home / "mlflow.db")
            marker.touch()
        _settle(root, home / "mlflow.db")
    return uri


def _migrate(database: Path, uri: str) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PvqaeError(f"MLflow's database {database} can't be prepared:\n{done.stderr[-2000:]}")


def _settle(root: Path, database: Path) -> None:
    """Make the addresses in a project's `database` those of `root`, and bring what a copy left with its original.

    The caller holds the database's lock. Where the project has not moved since the last time, nothing is read. Raises
    `PvqaeError` where the database can't be changed.
    """
    here, marker = str(root), database.with_name("place")
    if marker.is_file() and marker.read_text("utf-8") == here:
        return
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE)) as connection, connection:
            connection.execute("begin immediate")
            changed = [pair for table, column in COLUMNS for pair in _readdress(connection, table, column, root)]
    except sqlite3.Error as error:
        raise PvqaeError(
            f"{database}: its addresses can't be made those of {root}: {error}; end what uses it, then run again"
        ) from None
    brought = sum(_bring(Path(unquote(urlsplit(old).path)), Path(unquote(urlsplit(new).path))) for old, new in changed)
    if changed:
        places = ", ".join(sorted({unquote(urlsplit(old).path).rpartition(STORE)[0] for old, _ in changed}))
        more = f", {brought} folders were copied from there" if brought else ""
        said = f"this project was at {places}: {len(changed)} addresses of MLflow are those of {root} now{more}"
        print(said, file=sys.stderr, flush=True)
    write_text(marker, here)


def _readdress(connection: sqlite3.Connection, table: str, column: str, root: Path) -> list[tuple[str, str]]:
    """Change the addresses of a column; return each that changed, old and new."""
    asked = f"select distinct {column} from {table} where {column} like ?"  # names from above
    found = [row[0] for row in connection.execute(asked, (f"file:%{STORE}%",))]
    ours, changed = root.as_uri(), []
    for old in found:
        before, store, rest = old.rpartition(STORE)
        if before != ours:
            changed.append((old, f"{ours}{store}{rest}"))
    change = f"update {table} set {column} = ? where {column} = ?"
    connection.executemany(change, [(new, old) for old, new in changed])
    return changed


def _bring(old: Path, new: Path) -> bool:
    """Copy a folder of artifacts that is only at the old place: what a copy of a project wrote into its original."""
    if new.exists() or not old.is_dir():
        return False
    shutil.copytree(old, new)
    return True
