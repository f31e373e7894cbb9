"""`pvqae report`: the folders of all classes become one table of figures, one of images, one ROC and one page.

The page also shows registered versions: where they came from and how they compare. They are in `versions.json` next
to the page, written at registration. That file is no output of the stage `report`: a version names the hash of
dvc.lock, so DVC can't track a file that names the version.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import digest, write_text
from pvqae.core.layout import Layout
from pvqae.report import page
from pvqae.samples import classes as listed
from pvqae.samples.manifest import write_csv

Values = dict[str, Any]
_VERSIONS = "versions.json"


@dataclass(frozen=True)
class ClassReport:
    """What `evaluate` wrote for one class; `pictures` are entries whose "files" name files below `folder`."""

    name: str
    folder: Path
    metrics: Values
    card: Values
    health: Values
    curves: Values
    pictures: list[Values]
    images: pd.DataFrame


def report(layout: Layout) -> Values:
    """Merge the classes of data/classes.yaml into metrics.json, images.csv, roc.csv and index.html of the dataset.

    A class without an evaluation (its data did not pass the checks, or one of its stages failed) is named as such.

    Returns the content of metrics.json. Raises `DataError` when no class was evaluated.
    """
    params = config.load(layout.root / "params.yaml")
    names = listed.read(layout.classes_file, layout.name).classes
    evaluated = [name for name in sorted(names) if layout.class_report(name).is_dir()] or sorted(names)
    classes = [_read(layout.reports, name) for name in evaluated]
    missing = sorted(set(names) - set(evaluated))
    metrics: Values = {
        "dataset": layout.name,
        "protocol": params.data.protocol,
        "classes": {one.name: one.metrics for one in classes},
        "mean": _mean([one.metrics for one in classes]),
        **({"not_evaluated": missing} if missing else {}),
    }
    demo = params.data.source == "demo"
    write_csv(pd.concat([_with_class(one.images, one.name) for one in classes]), layout.reports / "images.csv")
    write_csv(pd.concat([_roc(one) for one in classes]), layout.reports / "roc.csv")
    write_text(layout.reports / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    _write_page(layout.reports, metrics, classes, demo)
    return metrics


def _rewrite_page(reports: Path, demo: bool) -> None:
    """Write index.html again from the folder `reports` alone."""
    try:
        metrics = json.loads((reports / "metrics.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{reports}: no readable report: {error}; run `dvc repro -s report`") from None
    classes = [_read(reports, name) for name in metrics["classes"]]
    _write_page(reports, metrics, classes, demo)


def _write_page(reports: Path, metrics: Values, classes: list[ClassReport], demo: bool) -> None:
    known = read_versions(reports)
    versions, notes = (known.classes, known.notes) if known else ({}, ())
    write_text(reports / "index.html", page.render(metrics, classes, demo, versions, notes, history=known is not None))


def _mean(classes: list[Values]) -> Values:
    """Return the plain mean over the classes of each figure that is a number in any of them; nulls are left out.

    A figure that is null in every class (pixel figures without masks) is null.
    """
    result: Values = {}
    for key in dict.fromkeys(key for one in classes for key in one):
        values = [one.get(key) for one in classes]
        numbers = [value for value in values if isinstance(value, int | float)]
        if numbers or all(value is None for value in values):
            result[key] = float(np.mean(numbers)) if numbers else None
    return result


def _read(reports: Path, name: str) -> ClassReport:
    folder = reports / "classes" / name
    try:
        metrics, card, curves, pictures = (
            json.loads((folder / f"{file}.json").read_text("utf-8"))
            for file in ("metrics", "card", "curves", "pictures")
        )
        images = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: no readable evaluation of class {name}: {error}; run `dvc repro -s evaluate@{name}`"
        ) from None
    return ClassReport(name, folder, metrics, card["card"], card["health"], curves, pictures, images)


def _with_class(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return pd.concat([pd.Series([name] * len(frame), index=frame.index, name="class"), frame], axis=1)


def _roc(one: ClassReport) -> pd.DataFrame:
    return _with_class(pd.DataFrame(one.curves["roc"]), one.name)


@dataclass(frozen=True)
class Fact:
    """One line of a lineage; `is_hash`: shown in short, whole on request."""

    name: str
    value: str
    is_hash: bool = False


@dataclass(frozen=True)
class Comparison:
    """Figures of this version and of `other`; keys as in metrics.json, and size_bytes; absent: not known."""

    other: str  # a version's number
    role: str  # of the other, in words: "champion", "champion before it"
    same_images: bool  # both were evaluated on the same manifest
    this_figures: Mapping[str, float | None]
    other_figures: Mapping[str, float | None]


@dataclass(frozen=True)
class Verdict:
    """Of the promotion gate; `lines` are "kept | broken | undecided: rule: figures"."""

    outcome: str
    against: str  # a version's number
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Version:
    """Of one class; `number` "" when its bundle was not registered, `reasons` say why or why not."""

    model: str
    number: str
    alias: str
    registered: str  # ISO 8601 in UTC, "" when not known
    reasons: tuple[str, ...]
    lineage: tuple[Fact, ...]
    comparison: Comparison | None
    verdict: Verdict | None


@dataclass(frozen=True)
class _Known:
    """What versions.json holds: class → the fields of `Version`; `demo`: the page makes no quality claim.

    `notes`: what the check of the data warned of.
    """

    classes: dict[str, Values]
    demo: bool
    notes: tuple[str, ...] = ()


def write_versions(
    reports: Path, versions: Mapping[str, Version | Values], demo: bool, notes: Sequence[str] = ()
) -> None:
    """Write versions.json, by class, in a dataset's folder of reports, and index.html again.

    It belongs to the metrics.json there. A class whose version is as it was is given as `read_versions` found it.
    `notes`: what the check of the data warned of. Raises `DataError` if the folder has no complete report.
    """
    classes = {name: asdict(one) if isinstance(one, Version) else one for name, one in versions.items()}
    sha256 = digest(reports / "metrics.json")
    found = {"metrics_sha256": sha256, "demo": demo, "notes": list(notes), "classes": classes}
    write_text(reports / _VERSIONS, json.dumps(found, indent=1, allow_nan=False) + "\n")
    _rewrite_page(reports, demo)


def read_versions(reports: Path) -> _Known | None:
    """Return what versions.json holds; None if there is none, or it belongs to another metrics.json than today's."""
    try:
        found: Values = json.loads((reports / _VERSIONS).read_text("utf-8"))
        same = found["metrics_sha256"] == digest(reports / "metrics.json")
    except FileNotFoundError:
        return None
    return _Known(found["classes"], found["demo"], tuple(found.get("notes", ()))) if same else None
