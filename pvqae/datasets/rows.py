"""The checked rows that training, calibration and evaluation read: data/rows, written whole or not at all."""

import os
import shutil
from pathlib import Path

import pandas as pd

from pvqae.datasets import manifest
from pvqae.datasets.checks import TRAINING
from pvqae.datasets.classes import Classes
from pvqae.errors import IntegrityError
from pvqae.files import write_text
from pvqae.layout import Layout

SUMS, MANIFEST = "SHA256SUMS", "../manifest.csv"
PARTS = {"normals": TRAINING, "test": ("test",), "gate": ("gate",)}


def clear(layout: Layout) -> None:
    """Remove the rows of an earlier check: nothing may train on rows that no longer pass."""
    shutil.rmtree(layout.rows, ignore_errors=True)


def write(frame: pd.DataFrame, classes: Classes, layout: Layout) -> None:
    """Write one file per network (its classes' normals of train and calibrate) and three per class."""
    part = layout.rows.with_name("rows.part")
    shutil.rmtree(part, ignore_errors=True)
    of_class = {str(name): rows for name, rows in frame.groupby("category")}

    def select(names: tuple[str, ...], splits: tuple[str, ...]) -> pd.DataFrame:
        rows = pd.concat([of_class[name] for name in names])
        return rows[rows["split"].isin(splits)]

    for network, names in classes.networks.items():
        target = part / layout.network_rows(network).relative_to(layout.rows)
        manifest.write(select(names, TRAINING), target)
    for name in classes.classes:
        for kind, splits in PARTS.items():
            target = part / layout.class_rows(name, kind).relative_to(layout.rows)
            own = part / layout.network_rows(name).relative_to(layout.rows)
            if splits == TRAINING and classes.networks.get(name) == (name,):  # a class alone in its network
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(own, target)
            else:
                manifest.write(select((name,), splits), target)
    _list(part, layout)
    clear(layout)
    os.replace(part, layout.rows)


def _list(part: Path, layout: Layout) -> None:
    """The hashes of the rows in the folder `part`, and of the manifest that they come from."""
    files = {file.relative_to(part).as_posix(): file for file in sorted(part.rglob("*.csv"))}
    files[MANIFEST] = layout.manifest
    lines = [f"{manifest.digest(file)}  {name}\n" for name, file in files.items() if file.is_file()]
    write_text(part / SUMS, "".join(lines))


def read(layout: Layout, path: Path) -> pd.DataFrame:
    """The manifest rows of a file of this folder, or of the manifest itself, as they were checked.

    Raises `IntegrityError` where they were changed since, and as `manifest.read`.
    """
    name = MANIFEST if path == layout.manifest else path.relative_to(layout.rows).as_posix()
    sums = layout.rows / SUMS
    listed = sums.read_text("utf-8", errors="replace").splitlines() if sums.is_file() else []
    if listed and path.is_file() and f"{manifest.digest(path)}  {name}" not in listed:
        raise IntegrityError(f"{path}: expected the rows that were checked, found others; run `dvc repro`")
    return manifest.read(path)
