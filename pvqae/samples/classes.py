"""data/classes.yaml: which classes a dataset has, and which network and prior serve each. The library's one reader."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pvqae.core import plain_yaml
from pvqae.core.errors import ConfigError
from pvqae.core.layout import ARRIVED

T = TypeVar("T")
FROM_SCRATCH = "data/parents/none"  # the parent of a network that begins with random weights
# Names become files, stages of dvc.yaml and registered models.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"
NAME_WORDS = "at most 100 letters, digits, - and _"
_RESERVED = ("networks", "priors", "timings", ARRIVED)  # folders next to those of classes


@dataclass(frozen=True)
class _Prior:
    """`allocations` is a network's folder, or that of all networks, relative to the workspace's root."""

    classes: tuple[str, ...]
    allocations: str


@dataclass(frozen=True)
class _Member:
    """The names of the network and of the prior that serve a class."""

    network: str
    prior: str


@dataclass(frozen=True)
class Classes:
    """`networks` maps a network's name to its classes; every class belongs to one network and to one prior. `parents`
    maps a network's name to what it starts from, relative to the workspace's root: `FROM_SCRATCH`, or its own folder.
    """

    dataset: str
    networks: dict[str, tuple[str, ...]]
    priors: dict[str, _Prior]
    classes: dict[str, _Member]
    parents: dict[str, str]

    def network(self, name: str) -> tuple[str, ...]:
        """Return its classes. Raises `ConfigError` that names the known networks; so do the next two for their kind."""
        return _of(self.networks, name, "network")

    def prior(self, name: str) -> _Prior:
        return _of(self.priors, name, "prior")

    def member(self, name: str) -> _Member:
        return _of(self.classes, name, "class")

    def sharing(self, names: Iterable[str]) -> set[str]:
        """Return `names` with all classes that share a network or a prior with one of them, directly or not."""
        return connected([*self.networks.values(), *(one.classes for one in self.priors.values())], names)


def _of(known: Mapping[str, T], name: str, what: str) -> T:
    if name not in known:
        raise ConfigError(f"data/classes.yaml has no {what} {name!r}; expected one of: {', '.join(sorted(known))}")
    return known[name]


def connected(groups: Iterable[Iterable[str]], names: Iterable[str]) -> set[str]:
    """Return `names` with all that are in a group with one of them, directly or through others."""
    sets, found = [set(group) for group in groups], set(names)
    while more := set().union(*(group for group in sets if group & found)) - found:
        found |= more
    return found


def unusable(name: str) -> str:
    """Return why a class can't have this name, "" if it can."""
    if not re.fullmatch(NAME, name):
        return f"{NAME_WORDS} (it becomes a part of model names)"
    return (
        f"a name other than {name}, which is reserved for a folder next to those of the classes"
        if name in _RESERVED
        else ""
    )


def _text(value: Any) -> str:
    """Return a name. A class may be called 01 or no, but then in quotes: else YAML reads a number or a truth value."""
    if not isinstance(value, str):
        raise TypeError(f"a name in quotes, found {value!r}")
    return value


def _names(values: Iterable[Any]) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a list of names expected, found {type(values).__name__}")
    return tuple(map(_text, values))


def _parse(values: Any) -> Classes:
    return Classes(
        _text(values["dataset"]),
        {_text(name): _names(item["classes"]) for name, item in values["networks"].items()},
        {
            _text(name): _Prior(_names(item["classes"]), _text(item["allocations"]))
            for name, item in values["priors"].items()
        },
        {
            _text(name): _Member(_text(item["network"]), _text(item["prior"]))
            for name, item in values["classes"].items()
        },
        {_text(name): _text(item.get("parent", FROM_SCRATCH)) for name, item in values["networks"].items()},
    )


def read(path: Path, dataset: str) -> Classes:
    """Return the classes of `dataset`. Raises `ConfigError` for a file that is missing, malformed or another's."""
    repair = f"write it with `python -m flows data add {dataset} ROOT`"
    try:
        found = _parse(plain_yaml.parse(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {repair}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: expected dataset, networks, priors, classes, found {error!r}; {repair}") from None
    if problem := _problem(found, dataset):
        raise ConfigError(f"{path}: expected {problem}; {repair}")
    return found


def _problem(found: Classes, dataset: str) -> str:
    """Return what is wrong, "" if all is well."""
    if found.dataset != dataset:
        return f"dataset {dataset} as in params (data.name), found {found.dataset}"
    for name in (*found.networks, *found.priors, *found.classes):
        if not re.fullmatch(NAME, name):
            return f"names of {NAME_WORDS}, found {name!r}"
    for name, prior in found.priors.items():
        head, _, network = prior.allocations.partition(f"models/{dataset}/networks")
        if head or network.removeprefix("/") not in ("", *found.networks):
            return f"prior {name} to learn from a network's folder, found {prior.allocations}"
    for name, parent in found.parents.items():
        if parent not in (FROM_SCRATCH, f"data/parents/{name}"):
            return f"network {name} to have the parent {FROM_SCRATCH} or data/parents/{name}, found {parent}"
    return _misplaced(found)


def _misplaced(found: Classes) -> str:
    priors = {name: prior.classes for name, prior in found.priors.items()}
    for what, groups in (("network", found.networks), ("prior", priors)):
        placed = sorted((member, name) for name, members in groups.items() for member in members)
        named = sorted((name, getattr(member, what)) for name, member in found.classes.items())
        if placed != named:
            odd = sorted(set(placed) ^ set(named)) or placed
            return f"each class in exactly one {what}, the one that it names, found {odd}"
    return ""


Grouping = Callable[[list[str]], dict[str, list[str]]]


def _per_class(classes: list[str]) -> dict[str, list[str]]:
    """Return one group per class; needs the class at inference."""
    return {name: [name] for name in classes}


def _universal(classes: list[str]) -> dict[str, list[str]]:
    """Return one group of all classes."""
    return {"all": list(classes)}


def _clustered(classes: list[str]) -> dict[str, list[str]]:
    """Return one group: `prior.clusters` priors for all classes, made in one stage and told apart without a label."""
    return _universal(classes)


GROUPINGS: dict[str, Grouping] = {"per_class": _per_class, "universal": _universal, "clustered": _clustered}
