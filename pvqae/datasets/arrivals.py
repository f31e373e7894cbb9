"""Images that came to a dataset later: ROOT/arrived/CLASS/{good,gate,defect/KIND}/*, in every layout.

good/ and gate/ are good parts. Defects are what a person labelled in review: they judge challengers at the gate, and
nothing is ever trained on them. ROOT/arrived/labels.csv says who gave which label when.

They are kept apart from the images that the dataset was made of, so a mirror of those never removes them. A file's name
says which part it shows: PART__VIEW-<hash>.png; without the double underscore each image is a part of its own.
"""

import csv
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from pvqae.core.errors import DataError
from pvqae.core.files import write_table
from pvqae.core.layout import ARRIVED
from pvqae.datasets import layouts
from pvqae.datasets.layouts import SEPARATOR, Found

_OFFICIAL = "arrived"  # its normals were judged before they came in, so none of them may reach the frozen gate
_PARTS = {"good": _OFFICIAL, "gate": "gate"}  # folder → the split that is set
_DEFECT = "defect"  # folder of labelled defects, by kind
_LONGEST = 60  # characters kept of each half of a name


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:_LONGEST]


def file_name(original: str, sha256: str) -> str:
    """Return the name under which an image is kept: unique by its content, safe on every file system, its part still
    told.
    """
    path = PurePosixPath(original)
    part, separator, view = path.stem.partition(SEPARATOR)
    named = f"{_clean(part)}{SEPARATOR}{_clean(view)}" if separator and _clean(part) else _clean(path.stem) or "image"
    return f"{named}-{sha256[:16]}{path.suffix.lower()}"


def group_id(category: str, name: str) -> str:
    """Return the part that a file of that name (or stem) shows; it is never divided between splits."""
    return f"{category}/{ARRIVED}/{layouts.part_of(name) or PurePosixPath(name).stem}"


def scan(category: str, root: Path) -> list[Found]:
    """Return the arrived images of a category of the dataset at `root`; none where nothing has arrived."""
    return [*_good(category, root), *_defects(category, root)]


def _good(category: str, root: Path) -> list[Found]:
    return [
        Found(
            path,
            f"{category}/{ARRIVED}/{part}/{path.stem}",
            category,
            "normal",
            "good",
            None,
            group_id(category, path.name),
            official,
        )
        for part, official in _PARTS.items()
        for path in layouts.pictures(root / ARRIVED / category / part)
    ]


def _defects(category: str, root: Path) -> list[Found]:
    return [
        Found(
            path,
            f"{category}/{ARRIVED}/{_DEFECT}/{kind.name}/{path.stem}",
            category,
            "defect",
            kind.name,
            None,
            group_id(category, path.name),
            "gate",
        )
        for kind in layouts.folders(root / ARRIVED / category / _DEFECT)
        for path in layouts.pictures(kind)
    ]


_SIGNED = ("path", "sha256", "class", "label", "who", "when", "object", "score", "version")  # columns of labels.csv


def _labels_file(root: Path) -> Path:
    return root / ARRIVED / "labels.csv"


def signatures(root: Path) -> dict[str, dict[str, str]]:
    """Return the rows of labels.csv of the dataset at `root` by path below `root`; none where nobody has labelled
    anything.

    Raises `DataError` for other columns, and for rows that have not all of them.
    """
    file = _labels_file(root)
    if not file.exists():
        return {}
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            names, rows = tuple(table.fieldnames or ()), list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file}: expected a UTF-8 table, found {error}; restore it") from None
    if names != _SIGNED:
        raise DataError(f"{file}: expected the columns {', '.join(_SIGNED)}, found {names}; restore it")
    if any(None in row or None in row.values() for row in rows):
        raise DataError(f"{file}: expected {len(_SIGNED)} values in every row, found more or less; restore it")
    return {row["path"]: row for row in rows}


def sign(root: Path, rows: Iterable[Mapping[str, str]], moved: Collection[str] = ()) -> None:
    """Add rows to labels.csv, or replace those of the same path; sorted, whole or not at all.

    `moved`: names of files that went elsewhere, or out of the dataset; of these only `rows` hold.
    """
    known = signatures(root)
    merged = {path: row for path, row in known.items() if PurePosixPath(path).name not in moved}
    merged |= {row["path"]: {name: row[name] for name in _SIGNED} for row in rows}
    if merged == known:
        return
    write_table(_labels_file(root), _SIGNED, ([merged[path][name] for name in _SIGNED] for path in sorted(merged)))
