"""Datasets that a table describes: one row per image, in CSV, JSON, JSONL or Parquet, with columns of any names.

The columns are path, and where there are any label, split, mask, part, kind and class, in any case; `data.columns`
says what they are called in the file. Whether a label means a good part is in `data.good`, or obvious (good, OK, NG,
defect, ...).
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pvqae.core.config import Data
from pvqae.core.errors import DataError
from pvqae.datasets import layouts
from pvqae.datasets.layouts import Found

_ENDS = (".csv", ".json", ".jsonl", ".parquet")
COLUMNS = ("path", "label", "split", "mask", "part", "kind", "class")
_NAMED = 10  # rows or labels that an error lists
_SPLITS = {"": None, "train": "train", "val": "train", "validation": "train", "test": "test", "gate": "gate"}
_NAMELESS = {"true", "false"}  # labels that are no name of a kind; numbers aren't, either
_KNOWN_WORDS = "good, ok, normal, ... for good parts, bad, ng, defect, anomaly, ... for others"


def file(root: Path, data: Data) -> Path | None:
    """Return the table of a dataset: `data.table`, or the only one directly in its folder; None for none.

    Raises `DataError` for several, for one that is not there, and for a path that leaves the folder.
    """
    if data.table:
        path = _inside(root, data.table, "data.table")
        if root.is_dir() and not path.is_file():
            raise DataError(f"{path}: expected the table of data.table, found no file; correct params.yaml")
        return path if path.is_file() else None
    entries = sorted(root.iterdir()) if root.is_dir() else []
    tables = [p for p in entries if p.suffix.lower() in _ENDS and p.is_file() and p != root / data.annotations]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{root}: expected one table, found {names}; name the one to use in data.table")
    return tables[0] if tables else None


def _inside(root: Path, text: str, what: str) -> Path:
    """Return a file below `root` by its name in a table. Raises `DataError` for one that leaves it: a table from
    elsewhere must not read other files of this machine.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text or not path.parts:
        raise DataError(f"{what}: expected a path inside of the dataset with /, found {text!r}; correct it")
    return root.joinpath(*path.parts)


def parts(root: Path, data: Data) -> dict[str, Path]:
    """Return the classes of the table's rows, one named after the folder where the table names none."""
    path = file(root, data)
    return dict.fromkeys(_rows(path, root, data)["class"].unique(), root) if path else {}


def scan(category: str, root: Path, data: Data) -> list[Found]:
    """Return what each row of a class says of its image. Raises `DataError`, naming row and column, for a label or
    split of unknown meaning, and for images and masks that are not there.
    """
    path = file(root, data)
    assert path  # `parts` found it
    table = _rows(path, root, data)
    _check_good(path, table, data.good)
    own = table[table["class"] == category]
    _check_files(path, own, root)
    return [_found(category, root, row, path, data) for row in own.to_dict("records")]


def _rows(path: Path, root: Path, data: Data) -> pd.DataFrame:
    """Return the table as texts, in `COLUMNS`, with its rows numbered from 1 in the column `row`."""
    state = path.stat()
    named = tuple(sorted(data.columns.items()))
    return _read(path, (state.st_mtime_ns, state.st_size), named, root.name)


@lru_cache(maxsize=1)  # each class reads it
def _read(path: Path, state: tuple[int, int], named: tuple[tuple[str, str], ...], only: str) -> pd.DataFrame:
    table = _texts(path)
    own = {column.casefold(): column for column in table.columns} | {column: column for column in table.columns}
    names = {name: own[name] for name in COLUMNS if name in own} | dict(named)
    missing = [f"{name} (data.columns.{key})" for key, name in named if name not in table.columns]
    missing += ["path"] * ("path" not in names) + ["label"] * (not {"label", "kind"} & set(names))
    if missing:
        raise DataError(
            f"{path}: expected the column {', '.join(missing)}, found the columns {', '.join(table.columns)}; say in "
            "data.columns what they are called, such as data.columns: {path: file, label: ok}"
        )
    rows = pd.DataFrame({name: table[names[name]] if name in names else "" for name in COLUMNS}, index=table.index)
    rows["row"] = range(1, len(rows) + 1)
    if "class" not in names:
        rows["class"] = only
    if (rows["class"] == "").any():
        raise DataError(f"{path}, row {rows.loc[rows['class'] == '', 'row'].iloc[0]}: expected a class, found none")
    twice = rows[rows["path"].map(PurePosixPath).duplicated()]
    if len(twice):
        raise DataError(f"{path}, row {twice['row'].iloc[0]}: expected each image once, found {twice['path'].iloc[0]}")
    return rows


def _texts(path: Path) -> pd.DataFrame:
    """Return all cells as texts, "" for what is missing. Raises `DataError` for what is no such table."""
    try:
        found = _READERS[path.suffix.lower()](path)
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs the package pyarrow; install it, or export CSV") from None
    except (OSError, ValueError, KeyError, RecursionError, csv.Error) as error:  # pyarrow's are ValueErrors
        raise DataError(f"{path}: expected a table ({', '.join(_ENDS)}), found {error}; export it again") from None
    if found.empty or found.columns.duplicated().any():
        raise DataError(f"{path}: expected rows and one column of each name, found {', '.join(map(str, found))}")
    return found.rename(columns=str).map(_text)


def _text(value: Any) -> str:
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of numbers with gaps
    return str(value).strip()


def _csv(path: Path) -> pd.DataFrame:
    text = path.read_text("utf-8-sig")
    head = text.partition("\n")[0]
    comma = max(",;\t", key=head.count)  # a spreadsheet's own habit
    lines = [line for line in csv.reader(StringIO(text), delimiter=comma) if line]
    if not lines:
        raise ValueError("an empty file")
    for row, line in enumerate(lines):
        if len(line) != len(lines[0]):
            raise ValueError(f"{len(line)} values in row {row}, and {len(lines[0])} names in the first line")
    return pd.DataFrame(lines[1:], columns=lines[0], dtype=str)


def _records(values: Any) -> pd.DataFrame:
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise ValueError("no list of objects")
    return pd.DataFrame(values, dtype=object)


_READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _csv,
    ".json": lambda path: _records(json.loads(path.read_text("utf-8-sig"))),
    ".jsonl": lambda path: _records(
        [json.loads(one) for one in path.read_text("utf-8-sig").splitlines() if one.strip()]
    ),
    ".parquet": pd.read_parquet,
}


def _check_good(path: Path, rows: pd.DataFrame, good: Iterable[str]) -> None:
    """Raise `DataError` where no row has a label that means good: all parts would be defects."""
    labels = sorted(set(rows["label"].where(rows["label"] != "", rows["kind"])))
    if (known := sorted(good)) and not {one.casefold() for one in known} & {one.casefold() for one in labels}:
        told = ", ".join(labels[:_NAMED]) + ", ..." * (len(labels) > _NAMED)
        raise DataError(f"{path}: expected rows with a label of data.good ({', '.join(known)}), found {told}")


def _check_files(path: Path, rows: pd.DataFrame, root: Path) -> None:
    missing = []
    for row, image, mask in rows[["row", "path", "mask"]].itertuples(index=False):
        names = [image, mask] if mask else [image]
        missing += [f"row {row}: {n}" for n in names if not _inside(root, n, f"{path}, row {row}").is_file()]
    if missing:
        told = "\n  ".join([*missing[:_NAMED], *(["..."] * (len(missing) > _NAMED))])
        raise DataError(
            f"{path}: expected the files that it names below {root}, found none of\n  {told}\n"
            "  repair: add these files, or correct the rows"
        )


def _found(category: str, root: Path, row: Mapping[Any, Any], path: Path, data: Data) -> Found:
    place = f"{path}, row {row['row']}"
    image = _inside(root, row["path"], place)
    if not layouts.is_image(image.name):
        raise DataError(f"{place}: expected an image, found {row['path']}; export it as PNG")
    if row["split"].casefold() not in _SPLITS:
        raise DataError(
            f"{place}: expected a split of {', '.join(filter(None, _SPLITS))} or none, found {row['split']}"
        )
    official = _SPLITS[row["split"].casefold()]
    label = row["label"] or row["kind"]
    good = _means_good(label, data.good, place)
    mask = _inside(root, row["mask"], place) if row["mask"] else None
    found = layouts.normal(category, root, image, official)
    if row["part"]:
        found = replace(found, group_id=f"{category}/{row['part']}")
    if good:
        return replace(found, unneeded=(mask,) if mask else ())
    kind = row["kind"] or (label if not label.isdigit() and label.casefold() not in _NAMELESS else "defect")
    return layouts.untrained(replace(found, label="defect", kind=kind, mask_path=mask))


def _means_good(label: str, good: Iterable[str], place: str) -> bool:
    """Return whether a label means a good part. Raises `DataError` where nobody has said so."""
    known = {one.casefold() for one in good}
    if not label:
        raise DataError(f"{place}: expected a label, found none; fill it in")
    if known:
        return label.casefold() in known
    if layouts.is_good(label) or layouts.is_bad(label):
        return layouts.is_good(label)
    raise DataError(
        f"{place}: expected a label of known meaning ({_KNOWN_WORDS}), found {label}; say in data.good which labels "
        'mean good parts, such as data.good: ["0"]; all others are defects then'
    )
