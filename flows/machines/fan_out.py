"""Stages on other machines: an order to a work pool, its end awaited, its results taken from DVC's remote."""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flows.adapters.prefect_client import Pool, PoolError, State
from flows.adapters.versioning import Handover, StageFailed
from flows.core.processes import Cancelled
from flows.machines.job_spec import Order

POLL = 2.0  # seconds between two looks at a run
PATIENCE = 120.0  # seconds without any living worker after which waiting has no point
Say = Callable[[str], Any]


class FanOut:
    """`order_of` makes the order of some stages; `stopped` says whether the flow is ending."""

    def __init__(
        self,
        pool: Pool,
        versioning: Handover,
        order_of: Callable[[Sequence[str]], Order],
        stopped: Callable[[], bool],
        poll: float = POLL,
        patience: float = PATIENCE,
    ) -> None:
        self._pool, self._versioning, self._order_of, self._stopped = pool, versioning, order_of, stopped
        self._poll, self._patience = poll, patience
        self._lock = threading.Lock()  # DVC pushes and fetches one at a time
        self._pushed = False

    def work(self, stages: Sequence[str], say: Say) -> None:
        """Have `stages` done elsewhere; their results are in DVC's run cache afterwards.

        Raises `StageFailed` with the worker's words, `PoolError` when no worker lives, `Cancelled` at the flow's end.
        """
        with self._lock:
            if not self._pushed:
                self._versioning.push()
                self._pushed = True
        order = self._order_of(stages)
        run = self._pool.ask({"order": asdict(order)}, order.key, order.title)
        say(f"{order.title}: asked for as flow run {run}")
        try:
            state = self._ended(run, say)
        except BaseException:
            self._pool.cancel(run)
            raise
        if state.kind != "done":
            raise failure(stages, state)
        with self._lock:
            self._versioning.fetch_results()

    def _ended(self, run: str, say: Say) -> State:
        """Its last state."""
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


def failure(stages: Sequence[str], state: State) -> StageFailed:
    """What a worker could not do. A crash (no exit code known) is tried again, wrong input is not."""
    code = re.search(r"\(exit (-?\d+)\)", state.message)
    known = int(code[1]) if code else (1 if state.kind == "crashed" else None)
    return StageFailed(" ".join(stages), known, f"on a worker, {state.kind}: {state.message}")


def orders(
    dataset: str,
    git_sha: str,
    files: Callable[[Sequence[str]], Mapping[str, str]],
    parents: Mapping[str, tuple[str, str]],
) -> Callable[[Sequence[str]], Order]:
    """The order of some stages of a dataset."""

    def order(stages: Sequence[str]) -> Order:
        networks = {stage.partition("@")[2] for stage in stages if stage.startswith("train@")}
        kept = {name: version for name, version in parents.items() if name in networks}
        return Order(dataset, git_sha, tuple(stages), dict(files(stages)), kept)

    return order
