"""The manifest: one row per image. Its columns, its one reader and its one writer; paths and hashes of data files.

How far an image's statistics are from what its class's training normals show.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from pvqae.core.errors import DataError, IntegrityError
from pvqae.core.files import digest as digest
from pvqae.core.files import resolve as resolve
from pvqae.core.files import shown as shown

NUMBERS = ("width", "height", "channels", "bit_depth")
COLUMNS = (
    *("sample_id", "path", "sha256", "category", "group_id", "split", "label", "kind", "mask_path"),
    *NUMBERS,
    *("source", "captured_at"),
)
SPLITS = ("train", "calibrate", "test", "gate")
LABELS = ("normal", "defect")


def check(root: Path, path: str, expected: str) -> None:
    """Raise `IntegrityError` where the file `path` below `root` does not have the sha256 `expected`."""
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


# Robust sigmas, at most; a sigma is at least 10 % of the value, so a factor of two always passes: bounds find
# broken exposures and wrong files, not parts that differ. Normals of mtsd, with six exposures, reach 3.1 sigmas, those
# of bottle, toothbrush and the demo 1.9; a black image is at least 11 away. Of random classes of only eight mtsd
# normals 1 % would be stopped.
LIMIT = 8.0
STATISTICS = ("mean", "std", "sharpness")
_SMALLEST_SIGMA = 0.1
_BLANK_SHARE = 0.05  # of the class's median contrast; the least contrast among mtsd's normals is 0.34 of it
_BLANK_CONTRAST = 1e-4


def _of_class(values: pd.Series, category: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return the class's median of `values` over its `learnt` rows, on every row; NaN for a class that has none."""
    return category.map(values[learnt].groupby(category[learnt]).median())


def deviations(frame: pd.DataFrame, values: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return signed distance of each row's value (>= 0) from its class's median, in robust sigmas (1.48 MAD) of its
    logarithm.

    Logarithms, because exposure multiplies: mtsd's spread is wide, yet black is still far from it. 1 % of the median
    is added, so zero is far but finite. NaN where the class's median is zero, or there is no value or no class.
    """
    median = _of_class(values, frame["category"], learnt)
    scale = median.where(median > 0)
    logs = pd.Series(np.log((values + 0.01 * scale) / (1.01 * scale)), index=frame.index)
    centred = logs - _of_class(logs, frame["category"], learnt)
    sigma = 1.4826 * _of_class(centred.abs(), frame["category"], learnt)
    return centred / sigma.clip(lower=_SMALLEST_SIGMA)


def inverted(frame: pd.DataFrame, mean: pd.Series, skew: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return True for an image far from its class's `learnt` rows whose negative is among them."""

    here = _sigmas(frame, mean, mean, learnt, 0.02) + _sigmas(frame, skew, skew, learnt, 0.2)
    there = _sigmas(frame, 1 - mean, mean, learnt, 0.02) + _sigmas(frame, -skew, skew, learnt, 0.2)
    return (here > LIMIT) & (there < here / 4)


def _sigmas(frame: pd.DataFrame, values: pd.Series, known: pd.Series, learnt: pd.Series, least: float) -> pd.Series:
    """Return distance of `values` from the class's median of what is `known`, in robust sigmas of at least `least`."""
    middle = _of_class(known, frame["category"], learnt)
    sigma = 1.4826 * _of_class((known - middle).abs(), frame["category"], learnt)
    return (values - middle).abs() / sigma.clip(lower=least)


def shows_something(frame: pd.DataFrame, contrast: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return False for an image with little contrast (standard deviation of its grey levels) against its class."""
    smallest = (_BLANK_SHARE * _of_class(contrast, frame["category"], learnt)).fillna(0).clip(lower=_BLANK_CONTRAST)
    return contrast.isna() | (contrast > smallest)
