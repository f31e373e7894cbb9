"""Stages on other machines: a job for a work pool, its end awaited, its results taken from DVC's remote."""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flows.adapters.prefect_client import Pool, PoolError, State
from flows.adapters.versioning import Handover, StageFailed
from flows.core.processes import Cancelled
from flows.machines.job_spec import JobSpec

_POLL = 2.0  # seconds between two looks at a run
_PATIENCE = 120.0  # seconds without any living worker after which waiting has no point
_Say = Callable[[str], Any]


class FanOut:
    """Has stages done by a pool. `job_of` makes the job of some stages; `stopped` says whether the flow is ending."""

    def __init__(
        self,
        pool: Pool,
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


def job_maker(
    dataset: str,
    git_sha: str,
    files: Callable[[Sequence[str]], Mapping[str, str]],
    parents: Mapping[str, tuple[str, str]],
) -> Callable[[Sequence[str]], JobSpec]:
    """Return what makes the job of some stages of a dataset."""

    def job(stages: Sequence[str]) -> JobSpec:
        networks = {stage.partition("@")[2] for stage in stages if stage.startswith("train@")}
        kept = {name: version for name, version in parents.items() if name in networks}
        return JobSpec(dataset, git_sha, tuple(stages), dict(files(stages)), kept)

    return job
