"""Stages on other machines: which of them are one job, what a worker needs for it, and how it is asked for.

A job is a commit and small texts, no file; its end is awaited, its results are taken from DVC's remote.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from flows.adapters import dvc_command
from flows.adapters.prefect_client import PoolError, State
from flows.adapters.versioning import Handover, StageFailed
from flows.core import classes
from flows.core.processes import Cancelled
from pvqae.samples.classes import connected

_POLL = 2.0  # seconds between two looks at a run
_PATIENCE = 120.0  # seconds without any living worker after which waiting has no point
_Say = Callable[[str], Any]
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

    @classmethod
    def of(
        cls,
        dataset: str,
        git_sha: str,
        stages: Sequence[str],
        files: dict[str, str],
        parents: Mapping[str, tuple[str, str]],
    ) -> Self:
        """Return the job of some stages, with those of all `parents` that they train on from."""
        networks = {stage.partition("@")[2] for stage in stages if stage.startswith("train@")}
        kept = {name: version for name, version in parents.items() if name in networks}
        return cls(dataset, git_sha, tuple(stages), files, kept)

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
    return classes.without(content, set(content["classes"]) - connected(groups, found))


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


class _Pool(Protocol):
    """What the flows need of a work pool: `PrefectPool`, or `fakes.FakePool` in tests."""

    def ask(self, parameters: Mapping[str, Any], key: str, title: str) -> str: ...
    def state(self, run: str) -> State: ...
    def cancel(self, run: str) -> None: ...
    def workers(self) -> int: ...


class FanOut:
    """Has stages done by a pool. `job_of` makes the job of some stages; `stopped` says whether the flow is ending."""

    def __init__(
        self,
        pool: _Pool,
        versioning: Handover,
        job_of: Callable[[Sequence[str]], JobSpec],
        stopped: Callable[[], bool],
        poll: float = _POLL,
        patience: float = _PATIENCE,
    ) -> None:
        self._pool, self._versioning, self._job_of, self._stopped = pool, versioning, job_of, stopped
        self._poll, self._patience = poll, patience
        self._lock = threading.Lock()  # DVC pushes and fetches one at a time
        self._pushed = False

    def work(self, stages: Sequence[str], say: _Say) -> None:
        """Have `stages` done elsewhere; their results are in DVC's run cache afterwards.

        Raises `StageFailed` with the worker's words, `PoolError` when no worker lives, `Cancelled` at the flow's end.
        """
        with self._lock:
            if not self._pushed:
                self._versioning.push()
                self._pushed = True
        job = self._job_of(stages)
        run = self._pool.ask({"order": asdict(job)}, job.key, job.title)
        say(f"{job.title}: asked for as flow run {run}")
        try:
            state = self._ended(run, say)
        except BaseException:
            self._pool.cancel(run)
            raise
        if state.kind != "done":
            raise _failure(stages, state)
        with self._lock:
            self._versioning.fetch_results()

    def _ended(self, run: str, say: _Say) -> State:
        """Wait for the end of a run; return its last state."""
        alone, told = time.monotonic(), ""
        while True:
            state = self._pool.state(run)
            if state.kind not in ("waiting", "running"):
                return state
            if self._stopped():
                raise Cancelled(run)
            if self._pool.workers():
                alone = time.monotonic()
            elif time.monotonic() - alone > self._patience:
                raise PoolError(
                    f"flow run {run} is {state.kind}, and no worker has given a sign of life for "
                    f"{self._patience:.0f} s; start one: python -m flows worker --pool POOL, then run again"
                )
            if state.kind != told:
                say(f"flow run {run} is {state.kind}")
                told = state.kind
            time.sleep(self._poll)


def _failure(stages: Sequence[str], state: State) -> StageFailed:
    """Return what a worker could not do. A crash (no exit code known) is tried again, wrong input is not."""
    code = re.search(r"\(exit (-?\d+)\)", state.message)
    known = int(code[1]) if code else (1 if state.kind == "crashed" else None)
    return StageFailed(" ".join(stages), known, f"on a worker, {state.kind}: {state.message}")
