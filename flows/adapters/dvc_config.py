"""DVC's machine-specific settings of a workspace."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configobj import ConfigObj  # type: ignore[import-untyped]  # the parser that DVC itself uses


def _absolute(dvc: Path, url: str) -> str:
    """DVC reads a relative path from the folder of the config file, which another workspace does not share."""
    return url if "://" in url or url.startswith(("ssh:", "/")) else str((dvc / url).resolve())


def share(root: Path, workspace: Path) -> None:
    """One cache and the same remotes for the project and its workspace: what one has made, the other only links.

    Only the workspace's config.local is written, with what the project's says plus absolute paths.
    """
    dvc = root / ".dvc"
    local: Any = ConfigObj(str(dvc / "config.local"), encoding="utf-8") if (dvc / "config.local").exists() else {}
    effective: Any = ConfigObj(str(dvc / "config"), encoding="utf-8")
    effective.merge(local)
    for section, values in effective.items():
        if section.startswith("remote") and "url" in values:
            values["url"] = _absolute(dvc, values["url"])
    cache = effective.setdefault("cache", {})
    cache["dir"] = _absolute(dvc, cache.get("dir", "cache"))
    _write_local(workspace, effective)


def cache(root: Path) -> Path:
    """The folder of DVC's cache."""
    effective: Any = ConfigObj(str(root / ".dvc" / "config"), encoding="utf-8")
    effective.merge(_local(root))
    return Path(_absolute(root / ".dvc", effective.get("cache", {}).get("dir", "cache")))


def default_remote(root: Path) -> dict[str, str] | None:
    """The section of the project's default remote, its path absolute; None where there is none."""
    effective: Any = ConfigObj(str(root / ".dvc" / "config"), encoding="utf-8")
    effective.merge(_local(root))
    name = effective.get("core", {}).get("remote", "")
    section = effective.get(f'remote "{name}"', {})
    if "url" not in section:
        return None
    return {**section, "url": _absolute(root / ".dvc", section["url"])}


SERVICES = 'remote "services"'  # the section of the remote that the services of this machine bring


def use_remote(root: Path, former: Path, values: Mapping[str, str]) -> None:
    """Make `values` (url, keys) the project's default remote; `former` keeps the name of the one before.

    Only .dvc/config.local is written, which git ignores and only its owner reads.
    """
    local = _local(root)
    core = local.setdefault("core", {})
    if SERVICES not in local:
        former.write_text(core.get("remote", ""), "utf-8")
    core["remote"] = "services"
    local[SERVICES] = dict(values)
    _write_local(root, local)


def former_remote(root: Path, former: Path) -> None:
    """Undo `use_remote`: its remote is gone, and the default is the one before it."""
    local = _local(root)
    local.pop(SERVICES, None)
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
    """Whole or not at all, for its owner only: there may be keys in it. No file where nothing is left to say."""
    file = root / ".dvc" / "config.local"
    if not local:
        file.unlink(missing_ok=True)
        return
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        local.write(out)
    os.replace(part, file)
