"""What another machine needs to do some stages of a dataset: a commit and small texts, no file."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from flows.adapters import dvc_command

_FIRST = ("demo", "manifest", "validate")  # stages that the asking machine has done itself


@dataclass(frozen=True)
class JobSpec:
    """Some stages of a dataset.

    `files`: paths in the workspace → texts; `parents`: network → the registered version that it goes on from.
    """

    dataset: str
    git_sha: str
    stages: tuple[str, ...]  # in the order in which they run
    files: dict[str, str]
    parents: dict[str, tuple[str, str]]

    @property
    def key(self) -> str:
        """A name of what is asked for: two jobs with the same key come to the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """The name of the flow run."""
        return f"{self.dataset}: {' '.join(self.stages)}"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Return the job that `asdict` and JSON made `values` of."""
        parents = {str(name): (str(item[0]), str(item[1])) for name, item in values["parents"].items()}
        files = {str(path): str(text) for path, text in values["files"].items()}
        return cls(str(values["dataset"]), str(values["git_sha"]), tuple(values["stages"]), files, parents)


def part_of_lock(lock: str, wanted: Iterable[str]) -> str:
    """Return dvc.lock with the entries of the first stages and of `wanted` only: a thousand other classes stay out."""
    content = dvc_command.parse(lock)
    names = set(wanted)
    stages = content.get("stages", {})
    kept = {name: entry for name, entry in stages.items() if name in names or name.partition("@")[0] in _FIRST}
    return dvc_command.text_of({**content, "stages": kept})


def part_of_classes(content: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Return data/classes.yaml with the classes of the stages `wanted`, and with all that share a model with them."""
    groups = [item["classes"] for part in ("networks", "priors") for item in content[part].values()]
    kinds = {"train": "networks", "prior": "priors"}
    found: set[str] = set()
    for stage in wanted:
        kind, _, name = stage.partition("@")
        found |= set(content[kinds[kind]][name]["classes"] if kind in kinds else [name])
    while more := {name for group in groups if found & set(group) for name in group} - found:
        found |= more
    parts = {part: {k: v for k, v in content[part].items() if found & set(v["classes"])} for part in kinds.values()}
    return {**content, **parts, "classes": {k: v for k, v in content["classes"].items() if k in found}}


def above(graph: Mapping[str, Sequence[str]], stages: Iterable[str]) -> set[str]:
    """Return `stages` and every stage of `graph` that they need, directly or not."""
    found: set[str] = set()
    waiting = list(stages)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found


Chain = tuple[str, ...]  # stages that one worker does one after another
Chains = dict[Chain, tuple[Chain, ...]]  # a chain → the chains that must end before it


def chains(graph: Mapping[str, Sequence[str]]) -> Chains:
    """Join stages that only follow each other: what one worker does in one go → the chains that it needs.

    A class with a network and a prior of its own is one chain; what several classes share is a chain of its own.
    """
    near = {name: _nearest(graph, name) for name in graph}
    after: dict[str, list[str]] = {name: [] for name in graph}
    for name, needs in near.items():
        for need in needs:
            after[need].append(name)
    joined: dict[str, list[str]] = {}
    for name, needs in near.items():  # needs come first in a graph
        alone = len(needs) == 1 and len(after[needs[0]]) == 1
        joined[name] = joined[needs[0]] if alone else []
        joined[name].append(name)
    chain_of = {name: tuple(chain) for name, chain in joined.items()}
    return {
        chain: tuple(dict.fromkeys(chain_of[need] for need in near[chain[0]]))
        for chain in dict.fromkeys(chain_of.values())
    }


def _nearest(graph: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """Return what `name` needs, without what those need anyway."""
    further = {other for need in graph[name] for other in above(graph, graph.get(need, ()))}
    return [need for need in graph[name] if need in graph and need not in further]
