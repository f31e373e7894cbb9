"""DVC's machine-specific settings of a workspace.

DVC writes its own files in place: a process that is killed while it writes leaves one cut off.

Nothing is lost with them: dvc.lock is made again from the run cache, the list of locks is of processes that are gone,
and a .dvc file is made again from the folder that it stands for. Any other fault of a file is a person's to repair:
with conflict markers or a mistyped hash it may be all that names a version.
"""

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from configobj import ConfigObj  # type: ignore[import-untyped]  # the parser that DVC itself uses

from flows.adapters import dvc_command
from flows.core import shared_files
from pvqae.core.errors import ConfigError, DataError


def _effective(root: Path) -> dict[str, Any]:
    """Return DVC's settings of the project: the system's, the user's, the project's, its local ones; the later win.

    Paths are absolute. Raises `ConfigError` for a file that is damaged.
    """
    from dvc import config, dirs  # a third of a second

    files = [Path(folder) / "config" for folder in (dirs.system_config_dir(), dirs.global_config_dir(), root / ".dvc")]
    for file in (*files, root / ".dvc" / "config.local"):
        try:
            config.Config.load_file(str(file))
        except FileNotFoundError:
            continue
        except (config.ConfigError, OSError) as error:
            raise ConfigError(f"{file}: not valid settings of DVC: {error}; correct it") from None
    return dict(config.Config(str(root / ".dvc"), validate=False))


def share(root: Path, workspace: Path) -> None:
    """Give a workspace the cache and the remotes of the project: what one has made, the other only links.

    Only the workspace's config.local is written.
    """
    found = _effective(root)
    found["cache"] = {**found["cache"], "dir": str(cache(root))}
    for kind in ("remote", "machine", "db"):
        found |= {f'{kind} "{name}"': values for name, values in found.pop(kind).items()}
    _write_local(workspace, ConfigObj({key: values for key, values in found.items() if values}))


def cache(root: Path) -> Path:
    """Return the folder of DVC's cache."""
    return Path(_effective(root)["cache"].get("dir", root / ".dvc" / "cache"))


def default_remote(root: Path) -> dict[str, str] | None:
    """Return the section of the project's default remote, its path absolute; None where there is none."""
    found = _effective(root)
    section: dict[str, str] = found["remote"].get(found["core"].get("remote", ""), {})
    return section if "url" in section else None


_SERVICES = 'remote "services"'  # the section of the remote that the services of this machine bring


def use_remote(root: Path, former: Path, values: Mapping[str, str]) -> None:
    """Make `values` (url, keys) the project's default remote; `former` keeps the name of the one before.

    Only .dvc/config.local is written, which git ignores and only its owner reads.
    """
    local = _local(root)
    core = local.setdefault("core", {})
    if _SERVICES not in local:
        former.write_text(core.get("remote", ""), "utf-8")
    core["remote"] = "services"
    local[_SERVICES] = dict(values)
    _write_local(root, local)


def former_remote(root: Path, former: Path) -> None:
    """Undo `use_remote`: its remote is gone, and the default is the one before it."""
    local = _local(root)
    local.pop(_SERVICES, None)
    core = local.get("core", {})
    if core.get("remote") == "services":
        del core["remote"]
        if before := former.read_text("utf-8") if former.exists() else "":
            core["remote"] = before
    if not core:
        local.pop("core", None)
    former.unlink(missing_ok=True)
    _write_local(root, local)


def _local(root: Path) -> Any:
    return ConfigObj(str(root / ".dvc" / "config.local"), encoding="utf-8")


def _write_local(root: Path, local: Any) -> None:
    """Write the local settings for their owner only, as there may be keys in them; no file where they are empty."""
    file = root / ".dvc" / "config.local"
    if not local:
        file.unlink(missing_ok=True)
        return
    local.encoding = "utf-8"
    out = io.BytesIO()
    local.write(out)
    write_private(file, out.getvalue().decode())


def write_private(path: Path, text: str) -> None:
    """Write UTF-8 that only the owner reads, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


_RWLOCK, _GUARD, LOCK = Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/rwlock.lock"), Path("dvc.lock")
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
# What DVC writes about a folder, line by line: a pattern, and examples, which complete a line that was cut off.
_LINES = (
    ("outs:", ("outs:",)),
    (r"- md5: [0-9a-f]{32}\.dir", (f"- md5: {'0' * 32}.dir",)),
    (r"  size: \d+", ("  size: 0",)),
    (r"  nfiles: \d+", ("  nfiles: 0",)),
    ("  hash: md5", ("  hash: md5",)),
    ("  path: (NAME|'NAME')", ("  path: NAME", "  path: 'NAME'")),
)


def mend(workspace: Path) -> list[str]:
    """Remove what was cut off and return its names; nothing when DVC works there.

    Raises `DataError` for a dvc.lock that is damaged otherwise.
    """
    with _alone(workspace / _GUARD) as alone:
        broken = list(_broken(workspace)) if alone else []
        for name in broken:
            (workspace / name).unlink()
    return [str(name) for name in broken]


@contextmanager
def _alone(guard: Path) -> Iterator[bool]:
    """Tell whether no DVC works there.

    Its guard is the system's lock, which a killed process does not hold, or (core.hardlink_lock) a hard link: it is
    there as long as it is held, and does not tell whether its holder lives.
    """
    if not guard.exists() or guard.stat().st_nlink > 1:
        yield not guard.exists()
        return
    with shared_files.tried(guard) as free:
        yield free


def _broken(workspace: Path) -> Iterator[Path]:
    if (workspace / _RWLOCK).exists() and not isinstance(_json(workspace / _RWLOCK), dict):
        yield _RWLOCK
    if (workspace / LOCK).exists() and _is_cut(workspace / LOCK, _is_valid):
        yield LOCK


def version_in(file: Path) -> str:
    """Return the hash that a dataset's .dvc file names, "" for one that was cut off.

    Raises `DataError` for any other.
    """
    name, text = file.stem, file.read_text("utf-8", errors="replace")
    match _yaml(text):
        case {"outs": [{"md5": str(found), "path": str(path)}]} if HASH.fullmatch(found) and path == name:
            return found
    *whole, last = text.split("\n")
    expected = [(line.replace("NAME", name), [one.replace("NAME", name) for one in ends]) for line, ends in _LINES]
    odd = [line for line, (pattern, _) in zip(whole, expected, strict=False) if not re.fullmatch(pattern, line)]
    odd += whole[len(expected) :]
    if not odd and len(whole) < len(expected):
        pattern, ends = expected[len(whole)]
        if any(re.fullmatch(pattern, last + end[len(last) :]) for end in ends):
            return ""
    raise DataError(
        f"{file}: expected one version of data/raw/{name}, found {(odd or [last])[0]!r}; nothing was changed; "
        f"{repair(file)}"
    )


def repair(file: Path) -> str:
    """Say what a person can do about a .dvc file that names no version."""
    quoted = shlex.quote(str(file))
    return (
        f"write the version that you want into it, e.g. git checkout COMMIT -- {quoted}\nor remove it, and what is in "
        f"data/raw/{file.stem} becomes a version: rm {quoted}"
    )


def is_cut(file: Path) -> bool:
    """Tell whether a dataset's .dvc file or a dvc.lock was cut off.

    Raises `DataError` for one that is damaged otherwise.
    """
    return not version_in(file) if file.suffix == ".dvc" else _is_cut(file, _has_stages)


def stages_in(lock: Path) -> dict[str, Any]:
    """Return the stages of a dvc.lock, none for one that is not there or was cut off.

    Raises `DataError` for any other.
    """
    if not lock.exists() or _is_cut(lock, _has_stages):
        return {}
    return dict(_yaml(lock.read_text("utf-8")).get("stages") or {})


def _is_cut(lock: Path, whole: Callable[[dict[str, Any]], bool]) -> bool:
    """Tell whether a dvc.lock ends in its last stage; `whole` says of one's content that it does not.

    Raises `DataError` where it is neither.
    """
    text = lock.read_text("utf-8", errors="replace")
    if whole(_yaml(text)):
        return False
    *before, last = re.split(r"\n(?=  \S)", text)  # at the names of stages
    inside = re.fullmatch(r"(  \S.*(\n    .*)*(\n {0,3})?)?", last)
    if "schema: '2.0'\nstages:\n  ".startswith(text) or (inside and _has_stages(_yaml("\n".join(before)))):
        return True
    raise DataError(
        f"{lock}: not a lock file as DVC writes it, perhaps after a merge or an edit; nothing was "
        f"changed. Repair it, or remove it (rm {shlex.quote(str(lock))}): DVC finds what was made in its run cache"
    )


def _has_stages(found: dict[str, Any]) -> bool:
    stages = found.get("stages") or {}
    return "schema" in found and isinstance(stages, dict) and all(map(_is_stage, stages.values()))


def _is_stage(found: Any) -> bool:
    return isinstance(found, dict) and "cmd" in found


def _is_valid(found: dict[str, Any]) -> bool:
    """Tell whether DVC reads it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # a third of a second
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(found)
    except Invalid:
        return False
    return True


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8", errors="replace"))
    except ValueError:
        return None


def _yaml(text: str) -> dict[str, Any]:
    """Return the mapping that a text is, {} for any other."""
    try:
        return dvc_command.parse(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
