"""The file data/classes.yaml: which networks, priors and classes the stages of dvc.yaml run over."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pvqae.core import plain_yaml
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError, DataError
from pvqae.core.files import write_text
from pvqae.samples.classes import FROM_SCRATCH, GROUPINGS, Grouping

_HEADER = "# Which networks, priors and classes the stages of dvc.yaml run over. Written by `python -m flows`.\n"

_NETWORKS: dict[str, Grouping] = {"per_class": GROUPINGS["per_class"], "shared": GROUPINGS["universal"]}


def _choose(table: dict[str, Grouping], key: str, value: str) -> Grouping:
    if value not in table:
        raise ConfigError(f"{key}: expected one of {', '.join(table)}, found {value}")
    return table[value]


def classes(params: Params, categories: Sequence[str]) -> dict[str, Any]:
    """Return the content of data/classes.yaml for the dataset's `categories`, in any order."""
    dataset, names = params.data.name, sorted(categories)
    networks = _choose(_NETWORKS, "model.network", params.model.network)(names)
    priors = _choose(GROUPINGS, "prior.grouping", params.prior.grouping)(names)
    network_of = {name: network for network, members in networks.items() for name in members}
    prior_of = {name: prior for prior, members in priors.items() for name in members}

    folder = f"models/{dataset}/networks"

    def allocations(members: list[str]) -> str:
        """Return what a prior depends on: one network, if its classes share it, so that it need not wait for others."""
        used = {network_of[name] for name in members}
        return f"{folder}/{used.pop()}" if len(used) == 1 else folder

    return {
        "dataset": dataset,
        "networks": {name: {"classes": members, "parent": FROM_SCRATCH} for name, members in networks.items()},
        "priors": {name: {"classes": members, "allocations": allocations(members)} for name, members in priors.items()},
        "classes": {name: {"network": network_of[name], "prior": prior_of[name]} for name in names},
        "made": {dataset: {}} if params.data.source == "demo" else {},
    }


def without(graph: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the graph without the classes `names`, and without the networks and priors that served only them."""
    dropped = set(names)
    left = {name: item for name, item in graph["classes"].items() if name not in dropped}
    parts = {
        part: {name: item for name, item in graph[part].items() if not dropped.issuperset(item["classes"])}
        for part in ("networks", "priors")
    }
    return {**graph, **parts, "classes": left}


def there(params: Params, raw: Path) -> list[str]:
    """Return all classes of the dataset's folder. Raises `DataError` when it is not there."""
    from pvqae.datasets import demo, sources  # numpy and scipy: not for --help

    data = params.data
    if data.source == "demo":  # its stage makes it, later
        return sorted(demo.TURNS)
    if raw.is_dir():
        return sources.categories(data.source, raw, data)
    repair = f"python -m flows data add {data.name} FOLDER --source {shlex.quote(data.source)}"
    raise DataError(f"data/raw/{data.name}: there are no images of data.source={data.source}; {repair}")


def wanted(params: Params, raw: Path) -> list[str]:
    """Return the classes that the params ask for, from the dataset's folder.

    Raises `DataError` when it is not there, or one of them.
    """
    data, found = params.data, there(params, raw)
    if missing := sorted(set(data.categories) - set(found)):
        raise DataError(f"data.categories: {', '.join(missing)} not in {data.name}; it has {', '.join(found)}")
    return [name for name in found if not data.categories or name in data.categories]


def read(path: Path) -> dict[str, Any]:
    """Return the file's content, {} when there is none or it was cut off: each flow writes it again.

    Raises `ConfigError` for any other text, of a merge, say: a person decides.
    """
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    for whole in (text, text[: text.rfind("\n") + 1]):
        try:
            found = plain_yaml.parse(whole) or {}
        except ValueError:
            continue
        if isinstance(found, dict):
            return found if whole == text else {}
    repair = f"repair it, or remove it and it is written again: rm {shlex.quote(str(path))}"
    raise ConfigError(f"{path} is not as `python -m flows` writes it; {repair}")


def write(path: Path, content: dict[str, Any]) -> bool:
    """Write the file whole unless it is the same already; return whether it was written.

    The texts are compared: DVC may read another content than we do in one that a person wrote.
    """
    text = _HEADER + plain_yaml.dump(content)
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    read(path)  # stops at what is neither ours nor the beginning of it
    write_text(path, text)
    return True
