"""What may go: files that no version, alias, log, running flow or workspace refers to, and that can be made again.

Never touched: data/raw, scores, reports, arrivals and review (with ledger and labels), the registry's versions, the
promotion log, DVC's remotes.

Of DVC's cache: `dvc gc` would not do: it looks for dvc.lock next to dvc.yaml; on `pvqae/data` each dataset's is in a
folder of its own.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.adapters import dvc_files, git
from flows.adapters.dvc_files import HASH
from flows.adapters.tracking import Registry
from flows.core import lineage
from flows.versions import promotions
from flows.workspace import workspace
from pvqae.core import layout
from pvqae.core.errors import PvqaeError
from pvqae.datasets import inspection

_DAY = 86400.0
_PART_DAYS = 1.0  # after which no writer is still at a file that was begun
_UNTOUCHED = frozenset({"raw", "scores", "arrivals", "review", "remote", "mlflow", "prefect", ".git", ".venv"})


@dataclass(frozen=True)
class _Item:
    """A file or folder that may go, with its size in bytes (hard links count once each) and why."""

    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class Plan:
    """`busy`: what was left alone, as a flow works on it or other projects use it."""

    items: tuple[_Item, ...]
    busy: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        reasons = dict.fromkeys(item.why for item in self.items)
        groups = [(why, [item for item in self.items if item.why == why]) for why in reasons]
        told = [f"{len(own):6} {why}: {_megabytes(own)} MB" for why, own in groups]
        return (*told, f"{len(self.items):6} in all: {self.megabytes} MB", *self.busy)

    @property
    def megabytes(self) -> str:
        """The size of all that may go, to one digit."""
        return _megabytes(self.items)


def _megabytes(items: Sequence[_Item]) -> str:
    return f"{sum(item.size for item in items) / 1e6:.1f}"


def collect(root: Path, registry: Registry, keep_days: float, confirm: Callable[[Plan], bool]) -> tuple[Plan, bool]:
    """Plan, ask `confirm`, remove; no flow can start meanwhile. Returns the plan and whether it was carried out.

    What was used within `keep_days` stays. Raises an error of the registry, git or a damaged file: then nothing goes.
    """
    with workspace.quiet(root) as taken:
        plan = _make(root, registry, time.time() - keep_days * _DAY, [file.name for file in taken])
        if not plan.items or not confirm(plan):
            return plan, False
        failed = [said for item in plan.items if (said := _removed(item.path))]
        git.git(root, "worktree", "prune")
        if failed:
            raise PvqaeError("\n".join(failed) + "\nAll else was removed. Repair this and run again.")
        return plan, True


def _make(root: Path, registry: Registry, before: float, busy: Sequence[str]) -> Plan:
    """Plan what was last used `before` (seconds since 1970) and nothing refers to; `busy`: names of held locks."""
    versions = list(_versions(registry))
    datasets = {name.partition(".")[0] for name in busy}
    home, foreign = root / ".pvqae", _shared_cache(root)
    found = {
        "work folders of trainings that nobody went on with": _idle(_work(home, datasets), before),
        "workspaces of datasets without a version": _idle(_workspaces(home, datasets, registry), before),
        "kept features, unused": _idle((home / "cache" / "features").glob("??/*"), before),
        "facts of images, by other code": _idle(_old_facts(root), before),
        "copies of versions without an alias": _idle(_bundles(home, registry), before),
        "experiments' and GPU bundles' files": _idle([*home.glob("experiments/*"), *home.glob("gpu/*")], before),
        "half-written files": _idle(_parts(root), time.time() - _PART_DAYS * _DAY) if not busy else [],
        "objects of DVC's cache": [] if busy or foreign else _objects(root, versions, before),
    }
    told = tuple(f"left alone, a flow holds {name}" for name in busy)
    items = [_Item(path, _size(path), why) for why, paths in found.items() for path in paths]
    told += ("DVC's cache and half-written files were left alone",) if busy else ()
    told += (f"left alone, DVC's cache {foreign} is not this project's alone",) if foreign else ()
    return Plan(_outermost(items), told)


def _shared_cache(root: Path) -> Path | None:
    """Return DVC's cache where it is outside of the project: others may need what this project does not know of."""
    found = dvc_files.cache(root)
    return None if found.resolve().is_relative_to(root.resolve()) else found


def _versions(registry: Registry) -> Iterator[dict[str, str]]:
    """Yield the tags of every version, also of models that a person has renamed."""
    for name in registry.owners(""):
        for number in range(1, int(registry.find(name, {}) or 0) + 1):
            try:
                yield registry.version_tags(name, str(number))
            except PvqaeError:  # deleted by a person
                continue


def _objects(root: Path, versions: Sequence[dict[str, str]], before: float) -> list[Path]:
    commits = {tags["data_sha"] for tags in versions if tags.get("data_sha", lineage.NONE) != lineage.NONE}
    return unneeded(root, commits, lambda paths: _idle(paths, before))


def _work(home: Path, busy: set[str]) -> Iterator[Path]:
    for place in (home, *home.glob("runs/*/.pvqae"), *home.glob("jobs/*/.pvqae")):
        yield from (path for path in place.glob("work/*/*/*") if path.parts[-3] not in busy)


def _workspaces(home: Path, busy: set[str], registry: Registry) -> list[Path]:
    """Return the workspaces that may go.

    A dataset's has its params of then: it stays while it has versions. A worker's holds nothing that is nowhere else.
    """
    spaces = [path for path in home.glob("runs/*") if not promotions.models_of(registry, path.name)]
    return [path for path in [*spaces, *home.glob("jobs/*")] if path.name not in busy]


def _old_facts(root: Path) -> list[Path]:
    cache = layout.Layout(root, "any").cache
    return [path for path in cache.glob("facts-*.sqlite*") if not path.name.startswith(inspection.file(cache).name)]


def _bundles(home: Path, registry: Registry) -> Iterator[Path]:
    for path in home.glob("bundles/*"):
        name, _, version = path.name.rpartition("-")
        if version not in {registry.alias(name, alias) for alias in ("champion", "challenger")}:
            yield path


def _parts(root: Path) -> Iterator[Path]:
    for folder in (root / "data", root / "models", root / "reports", root / ".pvqae"):
        for place, below, names in os.walk(folder):
            yield from (Path(place, name) for name in (*below, *names) if name.endswith(".part"))
            below[:] = [name for name in below if name not in _UNTOUCHED and not name.endswith(".part")]


def _idle(paths: Iterable[Path], before: float) -> list[Path]:
    return sorted(path for path in paths if _last_used(path) < before)


def _last_used(path: Path) -> float:
    return max((one.lstat().st_mtime for one in _all(path)), default=0.0)


def _size(path: Path) -> int:
    return sum(one.lstat().st_size for one in _all(path) if not one.is_dir() or one.is_symlink())


def _all(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        for place, below, names in os.walk(path):
            yield from (Path(place, name) for name in (*below, *names))


def _outermost(items: Sequence[_Item]) -> tuple[_Item, ...]:
    """Leave out what is in a folder that goes anyway."""
    going = {item.path for item in items}
    return tuple(item for item in items if going.isdisjoint(item.path.parents))


def _removed(path: Path) -> str:
    """Remove `path`; return why it could not be removed, "" when it is gone."""
    try:
        _remove(path)
    except (PvqaeError, OSError) as error:
        return f"{path}: {error}"
    return f"{path}: could not be removed; see its owner and permissions" if os.path.lexists(path) else ""


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def unneeded(root: Path, commits: Iterable[str], idle: Callable[[Iterable[Path]], list[Path]]) -> list[Path]:
    """Return files of the cache that neither a work tree, a branch, a tag, nor one of `commits` (on pvqae/data) needs.

    `idle` says which of them may go at all.

    Raises `PvqaeError` where a commit or a file that says what is needed can't be read: then nothing may go.
    """
    cache = dvc_files.cache(root)
    objects = cache / "files" / "md5"
    if not objects.is_dir():
        return []
    needed = _with_contents(objects, _named(root, commits))
    gone = idle(path for path in objects.glob("??/*") if _hash(path) not in needed)
    hashes = {_hash(path) for path in gone}
    # What the run cache says of them goes, too: DVC would look for them when it pushes.
    runs = [path for path in cache.glob("runs/*/*/*") if path.is_file() and not hashes.isdisjoint(_of_run(path))]
    return [*gone, *runs]


def needed(root: Path, commits: Iterable[str]) -> tuple[list[Path], set[str]]:
    """Return the files of the cache that versions need, and the hashes among them that it does not have.

    Versions are those of `commits` (on pvqae/data), of its tip, and of the project and its workspaces; what stages only
    read, as code, is git's. Raises as `unneeded`.
    """
    objects = dvc_files.cache(root) / "files" / "md5"
    tip = git.commit_of(root, git.BRANCH)
    wanted = _with_contents(objects, _named_by(root, {*commits, *([tip] if tip else [])}, _outs))
    there = {_hash(path): path for path in sorted(objects.glob("??/*"))}
    return [there[name] for name in sorted(wanted & there.keys())], wanted - there.keys()


def _hash(path: Path) -> str:
    """Return the hash of an object's file, without .dir."""
    return path.parent.name + path.name.partition(".")[0]


def _of_run(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _hashes(path.read_text("utf-8"), str(path))}


def _named(root: Path, commits: Iterable[str]) -> set[str]:
    """Return the hashes that a dvc.lock or a .dvc file names, of any branch or tag, too."""
    return _named_by(root, {*commits, *_every_commit(root)})


def _named_by(root: Path, commits: Iterable[str], part: Callable[[dict[str, Any]], object] = dict) -> set[str]:
    """Return the hashes in `part` of each of those files."""
    found: set[str] = set()
    for commit in sorted({git.needed(root, commit, "data_sha of a version") for commit in commits}):
        for name in git.files_of(root, commit):
            if name.endswith((".dvc", "dvc.lock")):
                found |= _hashes(git.git(root, "show", f"{commit}:{name}"), f"{commit}:{name}", part)
    for file in _here(root):
        if dvc_files.is_cut(file):
            raise PvqaeError(f"{file} was cut off: what it names is not known; the next flow or `data add` mends it")
        found |= _hashes(file.read_text("utf-8"), str(file), part)
    return found


def _every_commit(root: Path) -> set[str]:
    """Return the commits of every branch, tag and remote, and HEAD."""
    lines = git.git(root, "for-each-ref", "--format=%(objecttype) %(*objecttype) %(objectname)").splitlines()
    named = {line.split()[-1] for line in lines if "commit" in line.split()[:-1]}  # a tag may be of anything
    return named | {commit for commit in [git.commit_of(root, "HEAD")] if commit}


def _here(root: Path) -> Iterator[Path]:
    """Yield such files in the project and its workspaces, committed or not."""
    for place in (root, *root.glob(".pvqae/runs/*"), *root.glob(".pvqae/jobs/*")):
        yield from place.glob("dvc.lock")
        yield from place.glob("data/raw/*.dvc")


def _outs(content: dict[str, Any]) -> object:
    """Return what a .dvc file or a dvc.lock says of outputs."""
    return [content.get("outs"), *(stage.get("outs") for stage in (content.get("stages") or {}).values())]


def _hashes(text: str, name: str, part: Callable[[dict[str, Any]], object] = dict) -> set[str]:
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError(type(content).__name__)
        return set(_md5(part(content)))
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise PvqaeError(
            f"{name}: can't read its hashes: {error}; repair it, else what it needs could be removed"
        ) from None


def _md5(value: object) -> Iterator[str]:
    """Yield every hash below a key md5."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "md5" and isinstance(item, str):
                if not HASH.fullmatch(item):
                    raise ValueError(f"the hash {item!r}")
                yield item
            else:
                yield from _md5(item)
    elif isinstance(value, list):
        for item in value:
            yield from _md5(item)


def _with_contents(objects: Path, hashes: set[str]) -> set[str]:
    """Return `hashes` without .dir, and those of the files in the folders among them."""
    found = {name.partition(".")[0] for name in hashes}
    for name in hashes:
        listing = objects / name[:2] / name[2:]
        if name.endswith(".dir") and listing.is_file():
            found |= {str(row["md5"]) for row in json.loads(listing.read_text("utf-8"))}
    return found
