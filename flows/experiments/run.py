"""`python -m flows experiment`: a name, the list, or all of them."""

import os
from pathlib import Path

from flows.adapters.tracking import Registry
from flows.experiments import page, runs
from flows.experiments.catalogue import EXPERIMENTS
from flows.experiments.runs import Place
from pvqae.core import config


def listing() -> list[str]:
    """A line for each experiment."""
    return [f"{name:13} {found.question}" for name, found in EXPERIMENTS.items()]


def datasets_root(root: Path, given: str) -> Path:
    """Where the folders mvtec and mtsd are."""
    return Path(given or os.environ.get("PVQAE_DATASETS", "") or root.parent / "shared" / "datasets").expanduser()


def run(root: Path, name: str, registry: Registry, quick: bool = False, datasets: str = "") -> list[Path]:
    """Do the experiment `name` (or all) of the project at `root`; returns the pages written.

    Pages lie in docs/experiments; those of a quick run, whose numbers mean nothing, in its workspace below .pvqae.
    Raises `ConfigError` for an unknown name and `DataError` where a dataset is missing.
    """
    names = list(EXPERIMENTS) if name == "all" else [name]
    return [_one(root, one, registry, quick, datasets_root(root, datasets)) for one in names]


def _one(root: Path, name: str, registry: Registry, quick: bool, datasets: Path) -> Path:
    experiment = runs.find(name)
    home = root / ".pvqae" / "experiments"
    place = Place(home, f"{name}-quick" if quick else name, datasets)
    experiment = runs.quickened(experiment) if quick else experiment
    params = config.load(root / "params.yaml")
    done = list(runs.conduct(name, experiment, params, place, registry))
    folder = place.folder / "page" if quick else root / "docs" / "experiments"
    return page.write(name, experiment, done, folder, place.folder / "pictures")
