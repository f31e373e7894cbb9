"""DVC writes its own files in place: a process that is killed while it writes leaves one cut off.

Nothing is lost with them: dvc.lock is made again from the run cache, the list of locks is of processes that are gone,
and a .dvc file is made again from the folder that it stands for.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flows import locks

RWLOCK, GUARD, LOCK = Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/rwlock.lock"), Path("dvc.lock")
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def mend(workspace: Path) -> list[str]:
    """Remove what was cut off; returns what was. Nothing when DVC works there: its guard is the system's lock, which a
    killed process does not hold."""
    if not (workspace / GUARD).exists():
        return []
    with locks.tried(workspace / GUARD) as free:
        broken = list(_broken(workspace)) if free else []
        for name in broken:
            (workspace / name).unlink()
    return [str(name) for name in broken]


def _broken(workspace: Path) -> Iterator[Path]:
    if (workspace / RWLOCK).exists() and not isinstance(_json(workspace / RWLOCK), dict):
        yield RWLOCK
    if (workspace / LOCK).exists() and not _is_lock(_yaml(workspace / LOCK)):
        yield LOCK


def version_in(file: Path) -> str:
    """The hash that a .dvc file names, "" for one that was cut off."""
    match _yaml(file):
        case {"outs": [{"md5": str(found), "path": _}]} if HASH.fullmatch(found):
            return found
    return ""


def _is_lock(found: Any) -> bool:
    """Whether DVC reads it: a cut inside a value only makes a stage look changed."""
    if not isinstance(found, dict) or "schema" not in found:
        return False
    stages = found.get("stages", {})
    return isinstance(stages, dict) and all(isinstance(stage, dict) and "cmd" in stage for stage in stages.values())


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8", errors="replace"))
    except ValueError:
        return None


def _yaml(file: Path) -> Any:
    try:
        return yaml.load(file.read_text("utf-8", errors="replace"), yaml.CSafeLoader)
    except yaml.YAMLError:
        return None
