"""The catalogue of experiments, as `catalogue.yaml` has it: an experiment is one entry there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from pvqae.core import config
from pvqae.core.errors import ConfigError

Overrides = dict[str, Any]  # dotted params keys → values
Row = dict[str, float | None]
Figures = dict[str, Row]  # by row: "" is the row of the variant itself, other names are rows of their own


@dataclass(frozen=True)
class PlannedRun:
    """One run to do."""

    variant: str
    category: str
    params: config.Params  # with the variant's overrides and the seed

    def __str__(self) -> str:
        return f"{self.variant}, {self.category}, seed {self.params.seed}"


@dataclass(frozen=True)
class FinishedRun:
    """One run that was done, now or before."""

    planned: PlannedRun
    figures: Figures
    seconds: float  # of processor time
    kept: bool  # found from before


class _CatalogueEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _KnownClass(_CatalogueEntry):
    """Where a class comes from; of a large one a `share` of its groups is enough to answer a question."""

    dataset: str  # demo, or a folder below the datasets' root
    category: str
    share: float = 1.0


class Experiment(_CatalogueEntry):
    """A question, and the runs whose figures answer it."""

    question: str
    variants: dict[str, Overrides]  # the rows of its table
    classes: tuple[str, ...]  # of CLASSES
    figures: tuple[str, ...]  # of FIGURES, the columns of its table
    plot: str  # the figure that its plot shows
    measure: str = "detection"  # of `measures.MEASURES`
    seeds: int = 3
    base: Overrides = {}
    note: str = ""  # what a reader must know to read the numbers rightly

    def plan(self, params: config.Params) -> list[PlannedRun]:
        """Return every run, seed by seed, so that a killed experiment has whole tables of the first seeds."""
        return [
            PlannedRun(name, category, with_params(params, {**self.base, **overrides, "seed": seed}))
            for seed in range(self.seeds)
            for category in self.classes
            for name, overrides in self.variants.items()
        ]

    def quick(self) -> "Experiment":
        """Return the same on the demo, tiny: for tests."""
        variants = {name: {**overrides, **_CONTENT["quick"]["params"]} for name, overrides in self.variants.items()}
        classes = tuple(_CONTENT["quick"]["classes"])[: 2 if self.measure == "priors" else 1]
        return self.model_copy(update={"variants": variants, "classes": classes, "seeds": 1})


def with_params(params: config.Params, overrides: Overrides) -> config.Params:
    """Replace dotted keys of params, checked as a params file is."""
    values = params.model_dump(mode="json")
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    return config.parse(values, "the experiment")


_CONTENT: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
CLASSES = {name: _KnownClass(**values) for name, values in _CONTENT["classes"].items()}
EXPERIMENTS = {name: Experiment(**values) for name, values in _CONTENT["experiments"].items()}
FIGURES: dict[str, str] = _CONTENT["figures"]  # figure → what a table calls it


def find(name: str) -> Experiment:
    """Return an experiment by name. Raises `ConfigError` that lists the known ones."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"no experiment {name}; choose one of {', '.join(EXPERIMENTS)}, or list, or all")
    return EXPERIMENTS[name]
