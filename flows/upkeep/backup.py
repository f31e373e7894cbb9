"""Everything of a project that can't be made again, in one checked archive.

An archive is a tar file with the files as they lie in the project, the history of git that versions need, a list of
versions, and at its end the sha256 of all that. Secrets, scores, reports and what can be made again are not in it.
"""

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows.adapters import buckets, dvc_files, git
from flows.adapters.mlflow_store import Store
from flows.adapters.registry import open_registry
from flows.adapters.tracking import STORE, Registry, own_database
from flows.core import environment, lineage
from flows.machines import own_server
from flows.upkeep import gc_data
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.files import SUMS, whole_file

FORMAT = 1
FACTS, HISTORY = "backup.json", "history.bundle"
OBJECTS = "dvc"  # of DVC's cache, wherever that is
DATABASE = ".pvqae/mlflow/mlflow.db"
# Of the project and of each of its workspaces: what names versions of data and says how they were trained.
_NAMES = ("params.yaml", "dvc.lock", "data/classes.yaml", "data/raw/*.dvc")
_STATE = ("arrivals", "review", "sources")  # below .pvqae: what came, what people said of it
_PASSING = frozenset({"incoming", "outgoing"})  # folders of what was on its way
Say = Callable[[str], None]


@dataclass(frozen=True)
class Facts:
    """What an archive says of itself; `versions` is model → its versions, `champions` model → version or ""."""

    format: int
    made: str  # ISO 8601, UTC
    pvqae: str
    mlflow: str
    registry: str  # own | services | elsewhere: then it is not in the archive
    versions: Mapping[str, Sequence[str]]
    champions: Mapping[str, str]
    lacking: int  # objects that versions name and the cache does not have


def write(root: Path, target: str, say: Say = print) -> Facts:
    """Write the archive `target`, a file or s3://BUCKET/NAME, which appears whole or not at all; return what is in it.

    No flow works meanwhile. Raises `PvqaeError` where one does, or where the registry, git or a file that names
    versions can't be read.
    """
    root = root.resolve()
    remote = target.startswith(buckets.SCHEME)
    if not remote and Path(target).is_dir():
        raise ConfigError(f"{target}: expected a file to write, found a folder; name a file in it, NAME.tar")
    with workspace.quiet(root) as busy, tempfile.TemporaryDirectory(prefix=".backup-", dir=root / ".pvqae") as place:
        if busy:
            names = ", ".join(file.stem for file in busy)
            raise ConfigError(f"a flow works on {names}; run this again when it has ended")
        facts, files = _gather(root, Path(place), say)
        with whole_file(Path(place) / "archive.tar" if remote else Path(target).absolute()) as part:
            _pack(part, files, say)
        if remote:
            say(f"uploading to {target}")
            buckets.put(Path(place) / "archive.tar", target)
    return facts


def _gather(root: Path, place: Path, say: Say) -> tuple[Facts, dict[str, Path]]:
    """Return what is said of the archive and its members, path in it → file; what has to be made is made in `place`."""
    params = config.usable(root / "params.yaml")[0]
    registry, uri = open_registry(root, params.flow.tracking_uri)
    versions = {name: list(_versions(registry, name)) for name in registry.owners("")}
    files = dict(_named_files(root)) | dict(_state(root))
    kind, served = _registry_files(root, place, uri, say)
    files |= served
    commits = {tags[key] for found in versions.values() for _, tags in found for key in ("git_sha", "data_sha")}
    commits -= {lineage.NONE}
    files[HISTORY] = _history(root, place / HISTORY, commits)
    data = {tags["data_sha"] for found in versions.values() for _, tags in found} - {lineage.NONE}
    objects, lacking = gc_data.needed(root, data)
    files |= {f"{OBJECTS}/{path.relative_to(dvc_files.cache(root)).as_posix()}": path for path in objects}
    facts = Facts(
        format=FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        pvqae=version("pvqae"),
        mlflow=version("mlflow"),
        registry=kind,
        versions={name: [number for number, _ in found] for name, found in versions.items()},
        champions={name: registry.alias(name, "champion") or "" for name in versions},
        lacking=len(lacking),
    )
    (place / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n", "utf-8")
    return facts, {FACTS: place / FACTS, **files}


def _versions(registry: Registry, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield number and tags of each version that is there and has its lineage."""
    for number in map(str, range(1, int(registry.find(name, {}) or 0) + 1)):
        if registry.exists(name, number):
            tags = registry.version_tags(name, number)
            if not lineage.Lineage.missing(tags):
                yield number, tags


def _named_files(root: Path) -> Iterator[tuple[str, Path]]:
    for place in (root, *sorted(root.glob(".pvqae/runs/*"))):
        for path in sorted(path for name in _NAMES for path in place.glob(name) if path.is_file()):
            yield path.relative_to(root).as_posix(), path


def _state(root: Path) -> Iterator[tuple[str, Path]]:
    for name in _STATE:
        for folder, below, names in os.walk(root / ".pvqae" / name):
            below[:] = sorted(set(below) - _PASSING)
            for path in sorted(Path(folder, one) for one in names if not one.endswith(".part")):
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(root).as_posix(), path


def _registry_files(root: Path, place: Path, uri: str, say: Say) -> tuple[str, dict[str, Path]]:
    """Return whose registry is in use, and its database and files as they lie in a project with one of its own."""
    own = own_database(root)
    if uri == own:
        say("the registry: the project's own")
        copy = place / "mlflow.db"
        with closing(sqlite3.connect(root / DATABASE)) as one, closing(sqlite3.connect(copy)) as other:
            one.backup(other)
        return "own", {DATABASE: copy, **_artifacts(root, root)}
    if served := own_server.store(root, uri):
        say("the registry: that of the services of this machine, their database and bucket")
        database = own_database(place)
        rows = served.store.copy_to(Store(database, f"{root.as_uri()}{STORE}/"))
        count = buckets.get_folder(served.bucket, place / ".pvqae" / "mlflow" / "artifacts")
        say(f"the registry: {rows} rows, {count} files")
        return "services", {DATABASE: place / DATABASE, **_artifacts(place, place)}
    say(f"the registry at {environment.shown(uri)} is no part of this project: back it up where it runs")
    return "elsewhere", {}


def _artifacts(root: Path, place: Path) -> dict[str, Path]:
    folder = root / ".pvqae" / "mlflow" / "artifacts"
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(place).as_posix(): path for path in found}


def _history(root: Path, out: Path, commits: set[str]) -> Path:
    """Pack HEAD, `pvqae/data` and `commits` with all before them, as a bundle of git."""
    wanted = {git.needed(root, commit, "that a version names") for commit in commits}
    git.bundle(root, out, wanted)
    return out


def _pack(out: Path, files: Mapping[str, Path], say: Say) -> None:
    sums, size = [], 0
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files.items():
            size += path.stat().st_size
            with path.open("rb") as file:
                sums.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
            archive.add(path, name, recursive=False)
        text = "".join(sums).encode()
        about = tarfile.TarInfo(SUMS)
        about.size = len(text)
        archive.addfile(about, io.BytesIO(text))
    say(f"{len(files)} files, {size / 1e6:.1f} MB")
