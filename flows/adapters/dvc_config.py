"""DVC's machine-specific settings of a workspace."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configobj import ConfigObj  # type: ignore[import-untyped]  # the parser that DVC itself uses

from pvqae.errors import ConfigError


def effective(root: Path) -> dict[str, Any]:
    """What DVC takes for the settings of the project: the system's, the user's, the project's and its local ones, each
    above those before it; paths are absolute. Raises `ConfigError` for a file that is damaged."""
    from dvc import config, dirs  # a third of a second

    files = [Path(folder) / "config" for folder in (dirs.system_config_dir(), dirs.global_config_dir(), root / ".dvc")]
    for file in (*files, root / ".dvc" / "config.local"):
        try:
            config.Config.load_file(str(file))
        except FileNotFoundError:
            continue
        except (config.ConfigError, OSError) as error:
            raise ConfigError(f"{file}: expected DVC's settings, found {error}; correct it") from None
    return dict(config.Config(str(root / ".dvc"), validate=False))


def share(root: Path, workspace: Path) -> None:
    """One cache and the same remotes for the project and its workspace: what one has made, the other only links.

    Only the workspace's config.local is written.
    """
    found = effective(root)
    found["cache"] = {**found["cache"], "dir": str(cache(root))}
    for kind in ("remote", "machine", "db"):
        found |= {f'{kind} "{name}"': values for name, values in found.pop(kind).items()}
    _write_local(workspace, ConfigObj({key: values for key, values in found.items() if values}))


def cache(root: Path) -> Path:
    """The folder of DVC's cache."""
    return Path(effective(root)["cache"].get("dir", root / ".dvc" / "cache"))


def default_remote(root: Path) -> dict[str, str] | None:
    """The section of the project's default remote, its path absolute; None where there is none."""
    found = effective(root)
    section: dict[str, str] = found["remote"].get(found["core"].get("remote", ""), {})
    return section if "url" in section else None


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
