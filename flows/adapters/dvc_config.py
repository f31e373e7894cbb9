"""DVC's machine-specific settings of a workspace."""

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
    effective.filename = str(workspace / ".dvc" / "config.local")
    effective.write()
