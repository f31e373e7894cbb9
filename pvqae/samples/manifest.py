"""The manifest, one row per image, and the checked rows of it that training, calibration and evaluation read.

Tables and folders of rows are written whole or not at all; data/rows lists the hashes of its files and of the manifest
that they come from.
"""

import shutil
from itertools import product
from pathlib import Path

import pandas as pd

from pvqae.core.errors import DataError, IntegrityError
from pvqae.core.files import SUMS, digest, resolve, whole_file, whole_folder, write_text
from pvqae.core.layout import Layout
from pvqae.samples.classes import Classes

NUMBERS = ("width", "height", "channels", "bit_depth")
COLUMNS = (
    *("sample_id", "path", "sha256", "category", "group_id", "split", "label", "kind", "mask_path"),
    *NUMBERS,
    *("source", "captured_at"),
)
SPLITS = ("train", "calibrate", "test", "gate")
LABELS = ("normal", "defect")
TRAINING = ("train", "calibrate")  # small classes are calibrated by folds and train on both
PARTS = {"normals": TRAINING, "test": ("test",), "gate": ("gate",)}
_MANIFEST = "../manifest.csv"


def check(root: Path, path: str, expected: str) -> None:
    """Raise `IntegrityError` where the file `path` below `root` does not have the sha256 `expected`."""
    file = resolve(root, path)
    found = digest(file) if file.is_file() else "no file"
    if found != expected:
        raise IntegrityError(f"{path}: expected sha256 {expected}, found {found}; restore it (`dvc checkout`)")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table whole or not at all: UTF-8, `\\n`, no index."""
    with whole_file(path) as part:
        frame.to_csv(part, index=False, lineterminator="\n", encoding="utf-8")


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write manifest rows, sorted by sample_id, so that equal rows give equal bytes (their sha256 is lineage)."""
    _check_columns(frame, path)
    write_csv(frame.sort_values("sample_id", kind="stable"), path)


def read(path: Path) -> pd.DataFrame:
    """Return manifest rows with `COLUMNS`: text, but int64 for `NUMBERS`; nothing is ever NaN.

    Raises `DataError` when the file is missing, has other columns, or a number is not one.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: expected a manifest, found no file; write it with `dvc repro`") from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: expected a UTF-8 table, found {error}; delete it and run `dvc repro`") from None
    _check_columns(frame, path)
    if not isinstance(frame.index, pd.RangeIndex) or frame.isna().to_numpy().any():
        raise DataError(f"{path}: expected {len(COLUMNS)} values in every row; delete it and run `dvc repro`")
    for name in NUMBERS:
        wrong = frame.loc[~frame[name].str.fullmatch(r"[0-9]{1,9}"), "sample_id"]
        if len(wrong):
            raise DataError(
                f"{path}, column {name}, row {wrong.iloc[0]}: expected a number; delete it and run `dvc repro`"
            )
    return frame.astype(dict.fromkeys(NUMBERS, "int64"))


def _check_columns(frame: pd.DataFrame, path: Path) -> None:
    if tuple(frame.columns) != COLUMNS:
        expected, found = ", ".join(COLUMNS), ", ".join(map(str, frame.columns))
        raise DataError(f"{path}: expected the columns {expected}; found {found}; delete it and run `dvc repro`")


def write_rows(frame: pd.DataFrame, classes: Classes, layout: Layout) -> None:
    """Write one file per network (its classes' normals of train and calibrate) and three per class.

    Classes without rows in `frame` were held back: their files have no rows, which `read` refuses.
    """
    of_class = {str(name): rows for name, rows in frame.groupby("category")}

    def select(names: tuple[str, ...], splits: tuple[str, ...]) -> pd.DataFrame:
        rows = pd.concat([of_class.get(name, frame[:0]) for name in names])
        return rows[rows["split"].isin(splits)]

    with whole_folder(layout.rows) as part:
        for network, names in classes.networks.items():
            write(select(names, TRAINING), part / layout.network_rows(network).relative_to(layout.rows))
        for name, (kind, splits) in product(classes.classes, PARTS.items()):
            target = part / layout.class_rows(name, kind).relative_to(layout.rows)
            own = part / layout.network_rows(name).relative_to(layout.rows)
            if splits == TRAINING and classes.networks.get(name) == (name,):  # a class alone in its network
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(own, target)
            else:
                write(select((name,), splits), target)
        _list_rows(part, layout)


def _list_rows(part: Path, layout: Layout) -> None:
    """Return the hashes of the rows in the folder `part`, and of the manifest that they come from."""
    files = {file.relative_to(part).as_posix(): file for file in sorted(part.rglob("*.csv"))}
    files[_MANIFEST] = layout.manifest
    lines = [f"{digest(file)}  {name}\n" for name, file in files.items() if file.is_file()]
    write_text(part / SUMS, "".join(lines))


def read_rows(layout: Layout, path: Path) -> pd.DataFrame:
    """Return the manifest rows of a file of this folder, or of the manifest itself, as they were checked.

    Raises `IntegrityError` where they were changed since, and as `read`.
    """
    name = _MANIFEST if path == layout.manifest else path.relative_to(layout.rows).as_posix()
    sums = layout.rows / SUMS
    listed = sums.read_text("utf-8", errors="replace").splitlines() if sums.is_file() else []
    if listed and path.is_file() and f"{digest(path)}  {name}" not in listed:
        raise IntegrityError(f"{path}: expected the rows that were checked, found others; run `dvc repro`")
    found = read(path)
    if found.empty and path.stem != "gate":
        text = "expected rows of images that passed the checks, found none; repair what is in"
        raise DataError(f"{path}: {text} {layout.reports / 'validation.json'} under held_back")
    return found
