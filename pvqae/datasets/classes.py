"""data/classes.yaml: which classes a dataset has and which network learns each. Its one reader."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pvqae.errors import ConfigError

# Names become files, stages of dvc.yaml and registered models.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


@dataclass(frozen=True)
class Classes:
    """`networks` maps a network's name to its classes; every class belongs to one network."""

    dataset: str
    networks: dict[str, tuple[str, ...]]
    classes: tuple[str, ...]


def _parse(values: Any) -> Classes:
    networks = {str(name): tuple(map(str, network["classes"])) for name, network in values["networks"].items()}
    return Classes(str(values["dataset"]), networks, tuple(map(str, values["classes"])))


def read(path: Path, dataset: str) -> Classes:
    """The classes of `dataset`. Raises `ConfigError` when the file is missing, malformed or another dataset's."""
    repair = f"write it with `python -m flows data add {dataset} ROOT`"
    try:
        found = _parse(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {repair}") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: expected dataset, networks and classes, found {error!r}; {repair}") from None
    if found.dataset != dataset:
        raise ConfigError(
            f"{path}: expected dataset {dataset} as in params (data.name), found {found.dataset}; {repair}"
        )
    for name in (*found.networks, *found.classes):
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"{path}: expected names of letters, digits, - and _, found {name!r}; {repair}")
    members = sorted(name for network in found.networks.values() for name in network)
    if members != sorted(found.classes):
        raise ConfigError(f"{path}: expected each class in exactly one network, found {members}; {repair}")
    return found
