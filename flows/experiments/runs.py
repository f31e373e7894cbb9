"""Do an experiment's runs and keep each as a JSON file: a kill costs at most one run. `python -m flows experiment`."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from flows.adapters.tracking import Registry, as_metrics
from flows.experiments import catalogue, page, subjects
from flows.experiments.catalogue import CLASSES, Experiment, FinishedRun, PlannedRun
from flows.experiments.measures import MEASURES, Task
from flows.experiments.subjects import Subject, key_of, source_of
from flows.train.recording import ending
from flows.workspace import workspace
from pvqae.core import config, runtime
from pvqae.core.files import write_text

_ROOMS = ("samples", "features", "model", "prior", "training", "inference", "calibration", "evaluation")
# The code that decides what a run measures.
_SOURCES = (
    *(f"pvqae/{room}" for room in _ROOMS),
    *("pvqae/datasets/anomalies.py", "pvqae/core/seeding.py", "pvqae/core/runtime.py", "flows/experiments"),
)


@dataclass(frozen=True)
class _Paths:
    """Where experiments keep things: `home` for all of them, one folder each; `roots` where images come from."""

    home: Path
    name: str
    roots: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The experiment's own folder."""
        return self.home / self.name

    @property
    def shared(self) -> Path:
        """Manifests, cached features and weights, by hash: experiments that vary other things share them."""
        return self.home / "shared"


def run(root: Path, name: str, registry: Registry, quick: bool = False, data: Sequence[str] = ()) -> list[Path]:
    """Do the experiment `name` (or all) of the project at `root`; returns the pages written.

    Pages are written to docs/experiments; those of a quick run, whose numbers mean nothing, to its folder below .pvqae.
    `data` is what `subjects.dataset_roots` takes. Raises `ConfigError` for an unknown name and `DataError` where a
    dataset is missing.
    """
    names = list(catalogue.EXPERIMENTS) if name == "all" else [name]
    return [_one(root, one, registry, quick, tuple(subjects.dataset_roots(data))) for one in names]


def _one(root: Path, name: str, registry: Registry, quick: bool, roots: tuple[Path, ...]) -> Path:
    experiment = catalogue.find(name)
    paths = _Paths(root / ".pvqae" / "experiments", f"{name}-quick" if quick else name, roots)
    experiment = experiment.quick() if quick else experiment
    done = list(_conduct(name, experiment, config.load(root / "params.yaml"), paths, registry))
    folder = paths.folder / "page" if quick else root / "docs" / "experiments"
    return page.write(name, experiment, done, folder, paths.folder / "pictures")


@cache
def _source() -> str:
    """Hash the code that measures, as it was when this process first asked: it runs that code to its end."""
    return source_of(*_SOURCES)


def key(experiment: Experiment, planned: PlannedRun) -> str:
    """Name a run by params, class, measure, and code: two experiments that ask the same share the answer."""
    others = experiment.classes if experiment.measure == "priors" else ()
    return key_of(workspace.params_sha256(planned.params), planned.category, others, experiment.measure, _source())


def _conduct(
    name: str, experiment: Experiment, params: config.Params, paths: _Paths, registry: Registry
) -> Iterator[FinishedRun]:
    """Do the runs that are not done yet; all of them become runs of the tracking server below one parent."""
    _source()
    replace(runtime.plan(params.compute, 1), threads=torch.get_num_threads()).apply()
    todo = experiment.plan(params)
    data = paths.shared / "data"
    found = {c: subjects.load_known(c, paths.roots, data, params) for c in experiment.classes}
    with _tracked(registry, name, None, {"experiment": name}) as parent:
        for number, planned in enumerate(todo, start=1):
            print(f"{name}: run {number} of {len(todo)}: {planned}", flush=True)
            done = _run(experiment, planned, found, paths)
            _record(registry, parent, planned, done)
            yield done


def _run(experiment: Experiment, planned: PlannedRun, found: dict[str, Subject], paths: _Paths) -> FinishedRun:
    file = f"{key(experiment, planned)}.json"
    own = paths.folder / "runs" / file
    for known in (own, *sorted(paths.home.glob(f"*/runs/{file}"))):
        if known.exists():
            content = json.loads(known.read_text("utf-8"))
            write_text(own, json.dumps(content, indent=1))
            return FinishedRun(planned, content["figures"], content["seconds"], kept=True)
    others = tuple(subject for name, subject in found.items() if name != planned.category)
    free = CLASSES[planned.category].dataset == "demo" and planned.params.seed == 0
    pictures = paths.folder / "pictures" if free else None
    begun = time.process_time()
    task = Task(planned.params, found[planned.category], others, paths.shared, pictures)
    figures = MEASURES[experiment.measure](task)
    seconds = round(time.process_time() - begun, 1)
    facts = {"variant": planned.variant, "category": planned.category, "seed": planned.params.seed}
    write_text(own, json.dumps({**facts, "seconds": seconds, "figures": figures}, indent=1))
    return FinishedRun(planned, figures, seconds, kept=False)


@contextmanager
def _tracked(registry: Registry, name: str, parent: str | None, tags: dict[str, str]) -> Iterator[str]:
    run = registry.start("pvqae-experiments", name, parent, {"never_promotable": "true", **tags})
    try:
        yield run
    except BaseException as error:
        registry.finish(run, ending(error))
        raise
    registry.finish(run)


def _record(registry: Registry, parent: str, planned: PlannedRun, done: FinishedRun) -> None:
    tags = {"variant": planned.variant, "category": planned.category, "cached": str(done.kept).lower()}
    with _tracked(registry, str(planned), parent, tags) as run:
        registry.params(run, workspace.flat_params(planned.params))
        registry.metrics(run, as_metrics({row or "figures": figures for row, figures in done.figures.items()}))
