"""A project as it was, from the archive that `flows.upkeep.backup` wrote, in a clone that has no versions yet."""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.adapters import buckets, dvc_files, git
from flows.adapters.mlflow_store import Store
from flows.adapters.tracking import database_of, own_database
from flows.core import environment
from flows.upkeep.backup import DATABASE, FACTS, FORMAT, HISTORY, OBJECTS, Facts, Say
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import SUMS, digest, whole_file, write_text

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
