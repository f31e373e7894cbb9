"""The checked rows that training, calibration and evaluation read: data/rows, written whole or not at all."""

import os
import shutil
from pathlib import Path

import pandas as pd

from pvqae.datasets import manifest
from pvqae.datasets.checks import TRAINING
from pvqae.datasets.classes import Classes
from pvqae.layout import Layout

PARTS = {"normals": TRAINING, "test": ("test",), "gate": ("gate",)}


def _folder(layout: Layout) -> Path:
    return layout.data / "rows"


def clear(layout: Layout) -> None:
    """Remove the rows of an earlier check: nothing may train on rows that no longer pass."""
    shutil.rmtree(_folder(layout), ignore_errors=True)


def write(frame: pd.DataFrame, classes: Classes, layout: Layout) -> None:
    """Write one file per network (its classes' normals of train and calibrate) and three per class."""
    part = _folder(layout).with_name("rows.part")
    shutil.rmtree(part, ignore_errors=True)
    of_class = {str(name): rows for name, rows in frame.groupby("category")}

    def select(names: tuple[str, ...], splits: tuple[str, ...]) -> pd.DataFrame:
        rows = pd.concat([of_class[name] for name in names])
        return rows[rows["split"].isin(splits)]

    for network, names in classes.networks.items():
        target = part / layout.network_rows(network).relative_to(_folder(layout))
        manifest.write(select(names, TRAINING), target)
    for name in classes.classes:
        for kind, splits in PARTS.items():
            target = part / layout.class_rows(name, kind).relative_to(_folder(layout))
            manifest.write(select((name,), splits), target)
    clear(layout)
    os.replace(part, _folder(layout))
