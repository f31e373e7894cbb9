"""What the benches of training and inference are about: one class of real photographs where there are some, else of the
demo, with its views read and a scorer fitted by few steps: what is timed does not depend on how long was trained."""

from functools import cache
from pathlib import Path

from flows.experiments import subjects
from flows.experiments.trial import BenchmarkContext
from pvqae.core import config, runtime

PROJECT = Path(__file__).parents[2]
WORK = PROJECT / ".pvqae" / "bench"
BRIEF = ("train.steps=6", "prior.steps=6")
SMALL = ("image.size=64", "memory.codes=64", "train.batch=4")


def params(quick: bool, *overrides: str) -> config.Params:
    """The shipped params with what a bench changes; `quick`: of small images. One thread: ratios on it travel."""
    found = config.load(PROJECT / "params.yaml", ("compute.threads=1", *(SMALL if quick else ()), *overrides))
    runtime.plan(found.compute, 1).apply()
    return found


@cache
def context(name: str, quick: bool, *overrides: str) -> BenchmarkContext:
    """A class's rows and views. `name`, or the demo's brick where the datasets are absent or `quick` is asked for."""
    places = subjects.find_places(subjects.dataset_roots())
    known = name if not quick and any(place.category == name for place in places) else "brick"
    chosen = params(quick, *overrides)
    (subject,) = subjects.load(subjects.choose(places, [known]), WORK / "data", chosen)
    return BenchmarkContext(subject, chosen, WORK)
