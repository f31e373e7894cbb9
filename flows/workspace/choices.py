"""What a run is asked to do: effective params from a file and overrides, and whether the project itself may run it."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from flows.core import environment
from pvqae.core import config
from pvqae.core.config import Params

# Where and how fast a run happens, not what comes out of it.
NO_RESULT = ("compute", "flow", "gate", "services", "landing", "retrain", "drift", "service")


@dataclass(frozen=True)
class Choice:
    """`own`: the project's params.yaml as it stands, so the project itself is the workspace."""

    params: Params
    own: bool


def dataset_name(source: str, root: str) -> str:
    """A dataset's name when the user gave none: its source, or for plain folders the folder's own name."""
    if source != "folder" or not root:
        return source
    return re.sub(r"[^a-z0-9_-]+", "-", Path(root).resolve().name.lower()).strip("-_")[:100] or source


def choose(root: Path, params_file: str = "", overrides: tuple[str, ...] = ()) -> Choice:
    """Read the params of a run. A new data.source without a data.name is another dataset, so it gets another name.

    Raises `ConfigError` for a key or a value that `pvqae.core.config` does not know.
    """
    file = Path(params_file) if params_file else root / "params.yaml"
    params = config.load(file, overrides)
    keys = {item.partition("=")[0].strip() for item in overrides}
    if "data.source" in keys and "data.name" not in keys:
        name = dataset_name(params.data.source, params.data.root)
        params = config.load(file, (*overrides, f"data.name={name}"))
    return Choice(params, own=not overrides and file.resolve() == (root / "params.yaml").resolve())


def without_root(params: Params) -> Params:
    """The params as a workspace and a registered run keep them: where the images came from is this machine's matter."""
    return params.model_copy(update={"data": params.data.model_copy(update={"root": ""})})


def params_sha256(params: Params) -> str:
    """Hash of all params that can change a result."""
    values = {key: value for key, value in without_root(params).model_dump(mode="json").items() if key not in NO_RESULT}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def flat(params: Params) -> dict[str, str]:
    """Dotted keys and printed values, as MLflow wants them; addresses without name and password."""
    values = without_root(params).model_dump(mode="json")
    return {key: environment.shown(json.dumps(_at(values, key))) for key in config.known_keys()}


def _at(values: object, key: str) -> object:
    for part in key.split("."):
        assert isinstance(values, dict)
        values = values[part]
    return values
