"""Images of good parts that came to a dataset later: ROOT/arrived/CLASS/{good,gate}/*, in every layout.

They lie apart from the images that the dataset was made of, so a mirror of those never removes them. A file's name
says which part it shows: PART__VIEW-<hash>.png; without the double underscore each image is a part of its own.
"""

import re
from pathlib import Path, PurePosixPath

from pvqae.datasets import layouts
from pvqae.datasets.layouts import Found
from pvqae.layout import ARRIVED

OFFICIAL = "arrived"  # its normals were judged before they came in, so none of them may reach the frozen gate
PARTS = {"good": OFFICIAL, "gate": "gate"}  # folder → the split that is set
SEPARATOR = "__"
LONGEST = 60  # characters kept of each half of a name


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:LONGEST]


def file_name(original: str, sha256: str) -> str:
    """The name under which an image is kept: unique by its content, safe on every file system, its part still told."""
    path = PurePosixPath(original)
    part, separator, view = path.stem.partition(SEPARATOR)
    named = f"{_clean(part)}{SEPARATOR}{_clean(view)}" if separator and _clean(part) else _clean(path.stem) or "image"
    return f"{named}-{sha256[:16]}{path.suffix.lower()}"


def group_id(category: str, name: str) -> str:
    """The part that a file of that name (or stem) shows; it is never divided between splits."""
    part, separator, _ = name.partition(SEPARATOR)
    return f"{category}/{ARRIVED}/{part if separator else PurePosixPath(name).stem}"


def scan(category: str, root: Path) -> list[Found]:
    """The arrived images of a category of the dataset at `root`; none where nothing has arrived."""
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
        for part, official in PARTS.items()
        for path in layouts.pictures(root / ARRIVED / category / part)
    ]
