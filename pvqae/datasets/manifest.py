"""The manifest: one row per image. Its columns, its one reader and its one writer; paths and hashes of data files."""

import os
from pathlib import Path

import pandas as pd

from pvqae.errors import DataError, IntegrityError
from pvqae.files import digest as digest
from pvqae.files import resolve as resolve
from pvqae.files import shown as shown

NUMBERS = ("width", "height", "channels", "bit_depth")
COLUMNS = (
    *("sample_id", "path", "sha256", "category", "group_id", "split", "label", "kind", "mask_path"),
    *NUMBERS,
    *("source", "captured_at"),
)
SPLITS = ("train", "calibrate", "test", "gate")
LABELS = ("normal", "defect")


def check(root: Path, path: str, expected: str) -> None:
    """Raises `IntegrityError` where the file `path` below `root` has not the sha256 `expected`."""
    file = resolve(root, path)
    found = digest(file) if file.is_file() else "no file"
    if found != expected:
        raise IntegrityError(f"{path}: expected sha256 {expected}, found {found}; restore it (`dvc checkout`)")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table whole or not at all: UTF-8, `\\n`, no index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    frame.to_csv(part, index=False, lineterminator="\n", encoding="utf-8")
    os.replace(part, path)


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write manifest rows, sorted by sample_id, so that equal rows give equal bytes (their sha256 is lineage)."""
    _check_columns(frame, path)
    write_csv(frame.sort_values("sample_id", kind="stable"), path)


def read(path: Path) -> pd.DataFrame:
    """Manifest rows with `COLUMNS`: text, but int64 for `NUMBERS`; nothing is ever NaN.

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
