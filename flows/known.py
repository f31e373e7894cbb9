"""The datasets that were trained here and to which new images can come, and where theirs arrive."""

from pathlib import Path

from flows.adapters import landing
from pvqae import config
from pvqae.config import Params
from pvqae.errors import PvqaeError

PLACE = "{dataset}"  # in landing.url: each dataset has a place of its own


def datasets(root: Path, own: Params | None = None) -> list[str]:
    """Names, sorted: the project's own and those with a workspace, without those that a stage makes. One whose params
    can't be read is among them: whoever works on it says what is wrong."""
    own = own or config.load(root / "params.yaml")
    if not own.landing.url:
        return []
    found = {own.data.name: own} | {file.parent.name: _params(file) for file in _workspaces(root)}
    return sorted(name for name, params in found.items() if _takes(root, name, params))


def _takes(root: Path, name: str, params: Params | None) -> bool:
    made = params is not None and params.data.source == "demo"
    return not made and (root / "data" / "raw" / f"{name}.dvc").exists()


def _workspaces(root: Path) -> list[Path]:
    return sorted((root / ".pvqae" / "runs").glob("*/params.yaml"))


def _params(file: Path) -> Params | None:
    try:
        return config.load(file)
    except PvqaeError:  # of another version of the project, or half written
        return None


def shore(root: Path, params: Params) -> landing.Landing | None:
    """The landing area of the params' dataset, None without a landing.url; a relative folder is one of the project."""
    url = params.landing.url.replace(PLACE, params.data.name)
    if not url:
        return None
    return landing.open_landing(url if "://" in url else str(root / Path(url).expanduser()), params.landing.retries)
