"""Everything of a project that can't be made again, in one checked archive.

An archive is a tar file with the files as they lie in the project, the history of git that versions need, a list of
versions, and at its end the sha256 of all that. Secrets, scores, reports and what can be made again are not in it.
`read` brings it back in a clone that has no versions yet.
"""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows.adapters import buckets, dvc_files, git
from flows.adapters.mlflow_store import Store
from flows.adapters.registry import open_registry
from flows.adapters.tracking import DATABASE, STORE, Registry, database_of, own_database
from flows.core import environment, lineage
from flows.machines import control
from flows.upkeep import gc
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import SUMS, digest, make_folder, whole_file, write_text

FORMAT = 1
FACTS, HISTORY = "backup.json", "history.bundle"
OBJECTS = "dvc"  # of DVC's cache, wherever that is
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
    if not remote:
        make_folder(Path(target).absolute().parent)
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
    objects, lacking = gc.needed(root, data)
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
    if served := control.served(root, uri):
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


_CLONE = "restore into a new clone"
_REPAIR = "copy the archive again, or take another one"


def read(root: Path, source: str, say: Say = print) -> Facts:
    """Bring everything of the archive `source`, a file or s3://BUCKET/NAME, into the project at `root`.

    First all of it is unpacked and checked, so an archive that is damaged changes nothing. Raises `IntegrityError` for
    such a one, and `ConfigError` where the project has versions, samples or changed settings of its own. What was
    killed on the way goes on when it is run again.
    """
    root = root.resolve()
    begun = root / ".pvqae" / "restoring"
    if not begun.exists():
        _check_empty(root)
    with _unpacked(root, source, say) as place:
        facts, sums = _facts(place / FACTS, source), digest(place / SUMS)
        if begun.exists() and begun.read_text("utf-8") != sums:
            raise ConfigError(f"{source}: another archive was begun to be restored here; go on with it, or {_CLONE}")
        git.unbundle(root, place / HISTORY)
        write_text(begun, sums)
        objects = dvc_files.cache(root)
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            name = path.relative_to(place)
            if name.parts[0] not in (FACTS, HISTORY, SUMS):
                inside = name.parts[0] == OBJECTS
                _put(path, objects / name.relative_to(OBJECTS) if inside else root / name, keep=inside)
    if facts.registry != "elsewhere":
        own_database(root)  # its addresses become those of this folder
    begun.unlink()
    return facts


def _check_empty(root: Path) -> None:
    """Raise `ConfigError` where something of the project's own would be written over."""
    if environment.services_file(root).exists():
        raise ConfigError(
            "the services of this project run; run: python -m flows services down, restore, then services up and "
            "services take-over"
        )
    if (root / DATABASE).is_file() and (used := Store(database_of(root), "").used()):
        raise ConfigError(f"{root / DATABASE}: expected a project without versions, found {', '.join(used)}; {_CLONE}")
    for name in ("arrivals", "review"):
        if any((root / ".pvqae" / name).glob("*/*.jsonl")):
            raise ConfigError(f"{root / '.pvqae' / name}: expected none, found samples that arrived here; {_CLONE}")
    changed = git.git(root, "status", "--porcelain", "--untracked-files=no", "--", "params.yaml", "data", "dvc.lock")
    if changed:
        raise ConfigError(f"{root}: expected committed settings, found changed ones:\n{changed}\ncommit them first")


@contextmanager
def _unpacked(root: Path, source: str, say: Say) -> Iterator[Path]:
    """Give a folder below .pvqae with the archive's content, every file checked; it is gone afterwards."""
    place = root / ".pvqae" / "restore.part"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        file = Path(source)
        if source.startswith(buckets.SCHEME):
            say(f"downloading {source}")
            file = place.with_name("restore.tar.part")
            buckets.get(source, file)
        say(f"unpacking and checking {source}")
        _unpack(file, place, source)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        place.with_name("restore.tar.part").unlink(missing_ok=True)


def _unpack(file: Path, place: Path, source: str) -> None:
    try:
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")  # no links out, no devices, nothing outside
        lines = (place / SUMS).read_text("utf-8").splitlines()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise IntegrityError(f"{source}: expected an archive of `flows backup`, found {error}; {_REPAIR}") from None
    sums = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    there = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if not path.is_dir()}
    there.pop(SUMS)
    if odd := sorted(there.keys() ^ sums.keys()):
        raise IntegrityError(f"{source}: expected the files that its {SUMS} names, {odd[0]} differs; {_REPAIR}")
    for name, path in there.items():
        if path.is_symlink() or digest(path) != sums[name]:
            raise IntegrityError(f"{source}: {name} expected sha256 {sums[name]}, found another; {_REPAIR}")


def _facts(file: Path, source: str) -> Facts:
    found = json.loads(file.read_text("utf-8"))
    if found.get("format") != FORMAT:
        raise IntegrityError(
            f"{source}: expected an archive of format {FORMAT}, found {found.get('format')}; "
            "install the release that wrote it"
        )
    return Facts(**found)


def _put(source: Path, target: Path, keep: bool) -> None:
    """Move a file into place; `keep` one that is there, which has the same name for the same bytes."""
    if keep and target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError:  # another disk
        with whole_file(target) as part:
            shutil.copyfile(source, part)
