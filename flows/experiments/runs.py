"""Do the runs of an experiment and keep each as a JSON file: a kill costs at most one run."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from flows.adapters.tracking import Registry, as_metrics
from flows.experiments import subjects
from flows.experiments.bench_views import key_of, source_of
from flows.experiments.catalogue import EXPERIMENTS, QUICK, QUICK_CLASSES, Experiment
from flows.experiments.measures import MEASURES, Figures, Task
from flows.experiments.pieces import with_params
from flows.experiments.subjects import KNOWN, Subject
from flows.train.recording import ending
from flows.workspace import workspace
from pvqae.core import config, runtime
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text

# The code that decides what a run measures.
SOURCES = (
    *(
        f"pvqae/{room}"
        for room in ("samples", "features", "model", "prior", "training", "inference", "calibration", "evaluation")
    ),
    *("pvqae/datasets/anomalies.py", "pvqae/core/seeding.py", "pvqae/core/runtime.py", "flows/experiments"),
)
NEVER = {"never_promotable": "true"}


@dataclass(frozen=True)
class Planned:
    """One run to do."""

    variant: str
    category: str
    params: config.Params  # with the variant's overrides and the seed


@dataclass(frozen=True)
class Done:
    """One run that was done, now or before."""

    planned: Planned
    figures: Figures
    seconds: float  # of processor time
    kept: bool  # found from before


@dataclass(frozen=True)
class Place:
    """Where experiments keep things: `home` for all of them, one folder each, `datasets` where images come from."""

    home: Path
    name: str
    datasets: Path

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def shared(self) -> Path:
        """Manifests, cached features and weights, by hash: experiments that vary other things share them."""
        return self.home / "shared"


def find(name: str) -> Experiment:
    """Raises `ConfigError` that names the known ones."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment {name}: expected one of {', '.join(EXPERIMENTS)}, or list, or all")
    return EXPERIMENTS[name]


def quickened(experiment: Experiment) -> Experiment:
    """The same on the demo, tiny: for tests."""
    variants = {name: {**overrides, **QUICK} for name, overrides in experiment.variants.items()}
    classes = QUICK_CLASSES[: 2 if experiment.measure == "priors" else 1]
    return replace(experiment, variants=variants, classes=classes, seeds=1)


def plan(experiment: Experiment, params: config.Params) -> list[Planned]:
    """Every run: seed by seed, so that a killed experiment has whole tables of the first seeds."""
    return [
        Planned(name, category, with_params(params, {**experiment.base, **overrides, "seed": seed}))
        for seed in range(experiment.seeds)
        for category in experiment.classes
        for name, overrides in experiment.variants.items()
    ]


@cache
def source() -> str:
    """Hash of the code that measures, as it was when this process first asked: it runs that code to its end."""
    return source_of(*SOURCES)


def key(experiment: Experiment, planned: Planned) -> str:
    """Names a run: its params, class, measure, and the code. Two experiments that ask the same share the answer."""
    others = experiment.classes if experiment.measure == "priors" else ()
    return key_of(workspace.params_sha256(planned.params), planned.category, others, experiment.measure, source())


def conduct(
    name: str, experiment: Experiment, params: config.Params, place: Place, registry: Registry
) -> Iterator[Done]:
    """Do the runs that are not done yet; all of them become runs of the tracking server below one parent."""
    source()
    runtime.apply(replace(runtime.plan(params.compute, 1), threads=torch.get_num_threads()))
    todo = plan(experiment, params)
    found = {c: subjects.load(c, place.datasets, place.shared / "data", params) for c in experiment.classes}
    with _tracked(registry, name, None, {"experiment": name}) as parent:
        for number, planned in enumerate(todo, start=1):
            print(f"{name}: run {number} of {len(todo)}: {_words(planned)}", flush=True)
            done = _run(experiment, planned, found, place)
            _record(registry, parent, planned, done)
            yield done


def _words(planned: Planned) -> str:
    return f"{planned.variant}, {planned.category}, seed {planned.params.seed}"


def _run(experiment: Experiment, planned: Planned, found: dict[str, Subject], place: Place) -> Done:
    file = f"{key(experiment, planned)}.json"
    own = place.folder / "runs" / file
    for known in (own, *sorted(place.home.glob(f"*/runs/{file}"))):
        if known.exists():
            content = json.loads(known.read_text("utf-8"))
            write_text(own, json.dumps(content, indent=1))
            return Done(planned, content["figures"], content["seconds"], kept=True)
    others = tuple(subject for name, subject in found.items() if name != planned.category)
    free = KNOWN[planned.category].dataset == "demo" and planned.params.seed == 0
    task = Task(
        planned.params,
        found[planned.category],
        others,
        place.shared,
        place.folder / "pictures" if free else None,
    )
    begun = time.process_time()
    figures = MEASURES[experiment.measure](task)
    seconds = round(time.process_time() - begun, 1)
    facts = {"variant": planned.variant, "category": planned.category, "seed": planned.params.seed}
    write_text(own, json.dumps({**facts, "seconds": seconds, "figures": figures}, indent=1))
    return Done(planned, figures, seconds, kept=False)


@contextmanager
def _tracked(registry: Registry, name: str, parent: str | None, tags: dict[str, str]) -> Iterator[str]:
    run = registry.start("pvqae-experiments", name, parent, {**NEVER, **tags})
    try:
        yield run
    except BaseException as error:
        registry.finish(run, ending(error))
        raise
    registry.finish(run)


def _record(registry: Registry, parent: str, planned: Planned, done: Done) -> None:
    tags = {"variant": planned.variant, "category": planned.category, "cached": str(done.kept).lower()}
    with _tracked(registry, _words(planned), parent, tags) as run:
        registry.params(run, workspace.flat_params(planned.params))
        values = {row or "figures": figures for row, figures in done.figures.items()}
        registry.metrics(run, as_metrics(values))
