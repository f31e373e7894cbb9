"""What the stages did, as a tree of MLflow runs: parent; `validate`; one per class, with train, prior and evaluate.

The rows that a stage writes, {"phase", "fold", "step", "loss", ...}, become curves, live while it runs.
"""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.adapters.tracking import FLOW, Metric, Registry, as_metrics
from flows.core import shared_files
from flows.train.stages import Done
from flows.versions.registration import read_json
from flows.workspace.workspace import Workspace, flat_params
from pvqae.core.files import write_text

_PERIOD = 1.0  # seconds between looks at a growing file
_PLACE = ("phase", "fold", "step")  # which row it is, not what it says
_FULL = "full"  # the fold that leaves nothing out: the one that ships


@contextmanager
def flow_run(registry: Registry, space: Workspace, flow: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Start the MLflow run of a whole flow and end it with the block; end those of killed flows first.

    The caller holds the lock that such flows exclude each other with.
    """
    found = _end_dead_runs(registry, space.root, _experiment(space), flow)
    run = registry.start(_experiment(space), f"{flow} {space.params.data.name}", tags={**tags, **found})
    try:
        yield run
    except BaseException as error:
        registry.finish(run, ending(error))
        raise
    registry.finish(run)


def _end_dead_runs(registry: Registry, root: Path, experiment: str, flow: str) -> dict[str, str]:
    """End the runs of `flow` (train, retrain) of the project at `root` that MLflow shows as running for ever.

    Their flows were killed. To be called under the lock that flows of this kind exclude each other with: the dead one
    held it, so none of them can be alive. Return the tags by which the next flow finds this one's.
    """
    tags = {"pvqae.project": _identity(root), FLOW: flow}
    registry.end_open(experiment, tags)
    return tags


def _identity(root: Path) -> str:
    """Return what names this copy of the project, whatever the machine or container is called.

    A project that was moved keeps its name; a copy, whose original is still where it was, gets one of its own: on a
    tracking server that both use it must not end its original's runs.
    """
    file = root / ".pvqae" / "project"
    known = file.read_text("utf-8") if file.exists() else ""
    name, _, place = known.partition("\n")
    if place and place != str(root):
        with suppress(OSError):  # nothing there any more
            name = "" if (Path(place) / ".pvqae" / "project").read_text("utf-8") == known else name
    name = name or uuid.uuid4().hex
    if known != f"{name}\n{root}":
        write_text(file, f"{name}\n{root}")
    return name


def ending(error: BaseException | None) -> str:
    """Return MLflow's word for how a run ended: a cancelled one was killed, it did not fail."""
    return "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"


def _experiment(space: Workspace) -> str:
    return f"pvqae-{space.params.data.name}"


def _curves(rows: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Return each number of each row as `<phase>/<name>`, a fold's as `<phase>/<fold>/<name>`, without nulls."""
    found = []
    for row in rows:
        where = [str(row.get("phase", "train"))]
        if row.get("fold") not in (None, _FULL):
            where.append(str(row["fold"]))
        for key, value in row.items():
            if key not in _PLACE and isinstance(value, int | float) and not isinstance(value, bool):
                found.append(Metric("/".join([*where, key]), float(value), int(row.get("step", 0))))
    return found


class _Tail:
    """Hands each row on once, whatever file it comes from: the live one, or the finished history."""

    def __init__(self, sink: Callable[[list[Metric]], None]) -> None:
        self._sink = sink
        self._seen: set[tuple[Any, ...]] = set()

    def take(self, path: Path) -> None:
        """Hand on the new rows of a file; one that is still being written is left for the next look."""
        new = []
        for row in shared_files.records(path, dict):
            place = tuple(row.get(key) for key in _PLACE)
            if place not in self._seen:
                self._seen.add(place)
                new.append(row)
        if new:
            self._sink(_curves(new))

    @contextmanager
    def following(self, folder: Path, pattern: str) -> Iterator[None]:
        """Take rows meanwhile from the files of `pattern` below `folder` that change after the start.

        So a file of other params, which nothing writes any more, is not taken.
        """
        before = {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_PERIOD):
                for path in folder.glob(pattern):
                    try:
                        if path.stat().st_mtime_ns != before.get(path):
                            self.take(path)
                    except OSError:  # finished: the stage has moved it
                        continue

        thread = threading.Thread(target=look, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Recorder:
    """Follows a pipeline; its methods are called from the threads of several stages at once."""

    def __init__(self, registry: Registry, parent: str, space: Workspace, classes: Mapping[str, Any]) -> None:
        self._registry, self._space, self._classes = registry, space, classes
        self._runs: dict[tuple[str, ...], str] = {(): parent}
        self._lock = threading.RLock()
        self._tails: dict[str, _Tail] = {}

    def run(self, *path: str) -> str:
        """Return the run at `path` below the parent, e.g. ("bottle", "train"); start it at its first use."""
        with self._lock:
            if path not in self._runs:
                above = self.run(*path[:-1])
                self._runs[path] = self._registry.start(_experiment(self._space), path[-1], above, {"stage": path[-1]})
            return self._runs[path]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every run below the parent."""
        with self._lock:
            for path, run in self._runs.items():
                if path:
                    self._registry.finish(run, ending(error))

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Send a training's curves while it runs."""
        kind, _, key = stage.partition("@")
        with ExitStack() as stack:
            if kind == "train":
                runs = [self.run(member, "train") for member in self._members("networks", key)]
                self._tails[key] = _Tail(lambda rows: self._send(runs, rows))
                work = self._space.layout.work(f"network-{key}", "").parent
                stack.enter_context(self._tails[key].following(work, f"network-{key}/*/progress.jsonl"))
            yield

    def after(self, done: Done) -> None:
        """Record what a stage made."""
        kind, _, key = done.stage.partition("@")
        handlers = {
            "validate": self._validated,
            "train": self._trained,
            "prior": self._fitted,
            "calibrate": self._calibrated,
            "evaluate": self._evaluated,
        }
        if kind in handlers:
            handlers[kind](key, {"outcome": done.outcome, "cached": str(done.outcome != "ran").lower()})

    def complete(self, category: str) -> None:
        """Record a class whose stages all ran in an earlier flow, e.g. one whose code was not committed."""
        if (category, "evaluate") not in self._runs:
            names = self._classes["classes"][category]
            for stage in (f"train@{names['network']}", f"prior@{names['prior']}", f"evaluate@{category}"):
                with self.during(stage):
                    self.after(Done(stage, "unchanged"))

    def _members(self, part: str, key: str) -> list[str]:
        return list(self._classes[part][key]["classes"])

    def _send(self, runs: Sequence[str], rows: Sequence[Metric]) -> None:
        for run in runs:
            self._registry.metrics(run, rows)

    def _validated(self, _: str, tags: dict[str, str]) -> None:
        run, layout = self.run("validate"), self._space.layout
        self._registry.tag(run, tags)
        reports = (layout.reports / name for name in ("validation.json", "data_docs"))
        for path in (*reports, layout.quarantine, layout.ignored):
            if path.exists():
                self._registry.artifact(run, path)

    def _trained(self, network: str, tags: dict[str, str]) -> None:
        self._tails[network].take(self._space.layout.network(network) / "history.jsonl")
        for member in self._members("networks", network):
            run = self.run(member, "train")
            self._registry.tag(run, {**tags, "network": network})
            self._registry.params(run, flat_params(self._space.params))

    def _fitted(self, prior: str, tags: dict[str, str]) -> None:
        runs = [self.run(member, "prior") for member in self._members("priors", prior)]
        _Tail(lambda rows: self._send(runs, rows)).take(self._space.layout.prior(prior) / "history.jsonl")
        for run in runs:
            self._registry.tag(run, {**tags, "prior": prior})

    def _calibrated(self, category: str, tags: dict[str, str]) -> None:
        run, card = self.run(category), self._space.layout.bundle(category) / "calibration.json"
        self._registry.artifact(run, card)
        chosen = {key: value for key, value in read_json(card).items() if key not in ("scores", "warnings")}
        self._registry.metrics(run, as_metrics({"calibration": chosen}))

    def _evaluated(self, category: str, tags: dict[str, str]) -> None:
        run, folder = self.run(category, "evaluate"), self._space.layout.class_report(category)
        self._registry.tag(run, tags)
        figures = as_metrics(read_json(folder / "metrics.json"))
        self._registry.metrics(run, figures)
        self._registry.metrics(self.run(category), figures)  # the run that the model is logged under
        for name in ("metrics.json", "images.csv"):
            self._registry.artifact(run, folder / name)
