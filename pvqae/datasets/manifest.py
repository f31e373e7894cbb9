"""The manifest: one row per image. Its columns, its one reader and its one writer; paths and hashes of data files."""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from pvqae.errors import DataError, IntegrityError
from pvqae.files import open_regular

NUMBERS = ("width", "height", "channels", "bit_depth")
COLUMNS = (
    *("sample_id", "path", "sha256", "category", "group_id", "split", "label", "kind", "mask_path"),
    *NUMBERS,
    *("source", "captured_at"),
)
SPLITS = ("train", "calibrate", "test", "gate")
LABELS = ("normal", "defect")
SIDES = (8, 65535)  # pixels, the shortest and the longest side that an image may have


def digest(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises `OSError` for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What breaks a line of a table or a terminal, or is no text at all (a name that is not UTF-8).
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> str:
    """A file's name as text that every table holds: control characters and bytes that are not UTF-8 as \\x.. codes."""
    return _ODD.sub(lambda found: ascii(found[0])[1:-1], name)


def _short(error: Exception) -> str:
    """Without absolute paths: what is told of a dataset is the same on every machine."""
    circle = isinstance(error, RuntimeError)
    return "links in a circle" if circle else getattr(error, "strerror", None) or str(error)


def resolve(root: Path, relative: str) -> Path:
    """The file that a POSIX path `relative` to `root` names.

    Raises `DataError` if it is absolute, climbs with `..`, leaves `root` through a link, or can't be a path: a manifest
    may come from elsewhere and must not read other files of this machine.
    """
    parts = PurePosixPath(relative)
    inside = root.resolve()
    try:
        path = (inside / parts).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long; with a zero byte; links in a circle
        raise DataError(f"{shown(relative)[:300]}: expected a path, found {_short(error)}; correct it") from None
    if parts.is_absolute() or ".." in parts.parts or not path.is_relative_to(inside):
        raise DataError(
            f"{relative}: expected a path inside {root.name}/, found one that leaves it; copy the file to there"
        )
    return path


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
