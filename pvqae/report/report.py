"""`pvqae report`: the folders of all classes become one table of figures, one of images, one ROC and one page."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.report import page, versions
from pvqae.samples.classes import read
from pvqae.samples.manifest import write_csv

Values = dict[str, Any]


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

    Returns the content of metrics.json. Raises `DataError` when a class was not evaluated.
    """
    params = config.load(layout.root / "params.yaml")
    names = read(layout.classes_file, layout.name).classes
    classes = [_read(layout.reports, name) for name in sorted(names)]
    metrics = {
        "dataset": layout.name,
        "protocol": params.data.protocol,
        "classes": {one.name: one.metrics for one in classes},
        "mean": mean([one.metrics for one in classes]),
    }
    demo = params.data.source == "demo"
    write_csv(pd.concat([_with_class(one.images, one.name) for one in classes]), layout.reports / "images.csv")
    write_csv(pd.concat([_roc(one) for one in classes]), layout.reports / "roc.csv")
    write_text(layout.reports / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    _write_page(layout.reports, metrics, classes, demo)
    return metrics


def rewrite_page(reports: Path, demo: bool) -> None:
    """index.html anew from the folder `reports` alone, when its versions.json has changed.

    Raises `DataError` when the folder has no whole report.
    """
    try:
        metrics = json.loads((reports / "metrics.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{reports}: expected a report, found {error}; run `dvc repro -s report`") from None
    classes = [_read(reports, name) for name in metrics["classes"]]
    _write_page(reports, metrics, classes, demo)


def _write_page(reports: Path, metrics: Values, classes: list[ClassReport], demo: bool) -> None:
    known = versions.read(reports)
    write_text(reports / "index.html", page.render(metrics, classes, demo, known.classes if known else {}))


def mean(classes: list[Values]) -> Values:
    """Plain mean over the classes of each figure that is a number in any of them; nulls are left out.

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
            f"{folder}: expected the evaluation of class {name}, found {error}; run `dvc repro -s evaluate@{name}`"
        ) from None
    return ClassReport(name, folder, metrics, card["card"], card["health"], curves, pictures, images)


def _with_class(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return pd.concat([pd.Series([name] * len(frame), index=frame.index, name="class"), frame], axis=1)


def _roc(one: ClassReport) -> pd.DataFrame:
    return _with_class(pd.DataFrame(one.curves["roc"]), one.name)
