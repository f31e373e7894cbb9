"""Which objects of DVC's cache nothing refers to any more.

`dvc gc` would not do: it looks for dvc.lock next to dvc.yaml; on `pvqae/data` each dataset's is in a folder of its own.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from flows.adapters import dvc_files, git
from flows.adapters.dvc_files import HASH
from pvqae.core.errors import PvqaeError


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
