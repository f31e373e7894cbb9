"""From the rows that a stage writes, {"phase", "fold", "step", "loss", ...}, to curves; live while it runs.

What the stages did, as a tree of runs: parent; `validate`; one per class, with train, prior and evaluate below.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.adapters.tracking import Metric, Registry, as_metrics
from flows.train.stages import Done
from flows.versions.registration import read_json
from flows.workspace import workspace
from flows.workspace.workspace import Workspace

PERIOD = 1.0  # seconds between looks at a growing file
PLACE = ("phase", "fold", "step")  # which row it is, not what it says

FULL = "full"  # the fold that leaves nothing out: the one that ships

Row = dict[str, Any]


def curves(rows: Iterable[Row]) -> list[Metric]:
    """Each number of each row under `<phase>/<name>`, a fold's under `<phase>/<fold>/<name>`; nulls are left out."""
    found = []
    for row in rows:
        where = [str(row.get("phase", "train"))]
        if row.get("fold") not in (None, FULL):
            where.append(str(row["fold"]))
        for key, value in row.items():
            if key not in PLACE and isinstance(value, int | float) and not isinstance(value, bool):
                found.append(Metric("/".join([*where, key]), float(value), int(row.get("step", 0))))
    return found


def read(path: Path) -> list[Row]:
    """All whole rows of a JSON lines file; a last line that is still being written is left for the next look."""
    if not path.exists():
        return []
    whole = path.read_text("utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


class Tail:
    """Hands each row on once, whatever file it comes from: the live one, or the finished history."""

    def __init__(self, sink: Callable[[list[Metric]], None]) -> None:
        self._sink = sink
        self._seen: set[tuple[Any, ...]] = set()

    def take(self, path: Path) -> None:
        new = []
        for row in read(path):
            place = tuple(row.get(key) for key in PLACE)
            if place not in self._seen:
                self._seen.add(place)
                new.append(row)
        if new:
            self._sink(curves(new))

    @contextmanager
    def following(self, folder: Path, pattern: str) -> Iterator[None]:
        """Meanwhile, take rows from the newest file of `pattern` below `folder`. A file that nobody writes any more,
        of other params, is not taken: only one that changed after the start."""
        before = {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(PERIOD):
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
    """Observer of a pipeline; its methods are called from the threads of several stages at once."""

    def __init__(self, registry: Registry, parent: str, space: Workspace, classes: Mapping[str, Any]) -> None:
        self._registry = registry
        self._space = space
        self._classes = classes
        self._runs: dict[tuple[str, ...], str] = {(): parent}
        self._gate = threading.RLock()
        self._tails: dict[str, Tail] = {}

    def run(self, *path: str) -> str:
        """The run at `path` below the parent, started at its first use: ("bottle", "train")."""
        with self._gate:
            if path not in self._runs:
                above = self.run(*path[:-1])
                self._runs[path] = self._registry.start(experiment(self._space), path[-1], above, {"stage": path[-1]})
            return self._runs[path]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every run below the parent."""
        with self._gate:
            for path, run in self._runs.items():
                if path:
                    self._registry.finish(run, ending(error))

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        kind, _, key = stage.partition("@")
        with ExitStack() as stack:
            if kind == "train":
                runs = [self.run(member, "train") for member in self._members("networks", key)]
                self._tails[key] = Tail(lambda rows: self._curves(runs, rows))
                work = self._space.layout.work(f"network-{key}", "").parent
                stack.enter_context(self._tails[key].following(work, f"network-{key}/*/progress.jsonl"))
            yield

    def after(self, done: Done) -> None:
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
        """The runs of a class whose stages all lie in an earlier flow, e.g. one whose code was not committed."""
        if (category, "evaluate") not in self._runs:
            names = self._classes["classes"][category]
            for stage in (f"train@{names['network']}", f"prior@{names['prior']}", f"evaluate@{category}"):
                with self.during(stage):
                    self.after(Done(stage, "unchanged"))

    def _members(self, part: str, key: str) -> list[str]:
        return list(self._classes[part][key]["classes"])

    def _curves(self, runs: Sequence[str], rows: Sequence[Metric]) -> None:
        for run in runs:
            self._registry.metrics(run, rows)

    def _validated(self, _: str, tags: dict[str, str]) -> None:
        run, layout = self.run("validate"), self._space.layout
        self._registry.tag(run, tags)
        for path in (
            layout.reports / "validation.json",
            layout.quarantine,
            layout.ignored,
            layout.reports / "data_docs",
        ):
            if path.exists():
                self._registry.artifact(run, path)

    def _trained(self, network: str, tags: dict[str, str]) -> None:
        self._tails[network].take(self._space.layout.network(network) / "history.jsonl")
        for member in self._members("networks", network):
            run = self.run(member, "train")
            self._registry.tag(run, {**tags, "network": network})
            self._registry.params(run, workspace.flat_params(self._space.params))

    def _fitted(self, prior: str, tags: dict[str, str]) -> None:
        runs = [self.run(member, "prior") for member in self._members("priors", prior)]
        Tail(lambda rows: self._curves(runs, rows)).take(self._space.layout.prior(prior) / "history.jsonl")
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


def ending(error: BaseException | None) -> str:
    """MLflow's word for how a run ended: a cancelled one was killed, it did not fail."""
    return "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"


def experiment(space: Workspace) -> str:
    return f"pvqae-{space.params.data.name}"
