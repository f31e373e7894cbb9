"""Where the images of a batch come from, files and folders here, a bucket in the flows; and which can be scored.

Needs numpy and Pillow alone, as all that it imports: an exported detector carries it.
"""

import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pvqae.core.errors import DataError
from pvqae.core.files import shown
from pvqae.samples import images


@dataclass(frozen=True)
class Item:
    """An image in its place. `identity` names its content where the store does (else ""), so that it need not be
    fetched again; `modified` is ISO 8601 in UTC, or "" where it is not known.
    """

    path: str
    identity: str = ""
    modified: str = ""


class Source(Protocol):
    """Where images come from: files here, a bucket in the flows."""

    def items(self) -> Iterable[Item]: ...
    def file(self, item: Item, scratch: Path) -> Path:
        """Return a local file of the item, below `scratch` if it was fetched. Raises `PvqaeError` or `OSError`."""
        ...


@dataclass(frozen=True)
class Files:
    """Files, and the images in folders with all below them, sorted. Links to folders are not followed."""

    places: tuple[Path, ...]

    def items(self) -> Iterator[Item]:
        """Yield the images, also missing ones and folders that can't be listed: `file` says what is wrong with them.

        Raises `DataError` if none of the places exists.
        """
        if self.places and not any(place.exists() or place.is_symlink() for place in self.places):
            found = ", ".join(map(str, self.places[:3]))
            raise DataError(f"{found}: no image or folder of images there; correct the path")
        for place in self.places:
            if place.is_dir():
                yield from _in_folder(place)
            else:
                yield _item(place)

    def file(self, item: Item, scratch: Path) -> Path:
        path = Path(item.path)
        if path.is_symlink() and path not in self.places and not any(map(partial(_below, path), self.places)):
            raise DataError(f"{path}: a link that leaves its folder is not followed; copy the file")
        if not path.exists():
            raise DataError(
                f"{path}: no such file: it is gone, or its name is not UTF-8 or has control characters, "
                "shown here as \\x.. codes; rename it"
            )
        return path


def _below(path: Path, place: Path) -> bool:
    try:
        return path.resolve().is_relative_to(place.resolve())
    except RuntimeError:  # links in a circle
        return False


def _in_folder(place: Path) -> Iterator[Item]:
    closed: list[OSError] = []
    for folder, below, names in os.walk(place, onerror=closed.append):
        below.sort()
        for name in sorted(names):
            if is_image(name):
                yield _item(Path(folder, name))
    yield from (_item(Path(error.filename)) for error in closed)


def is_image(name: str) -> bool:
    """Return whether a name in a folder or bucket has the suffix of an image; hidden files are left alone."""
    return Path(name).suffix.lower() in images.SUFFIXES and not Path(name).name.startswith(".")


def _item(path: Path) -> Item:
    """Name a file so that tables can hold it: a spreadsheet takes what starts with = + - @ for a formula."""
    name = shown(path.as_posix())
    name = f"./{name}" if name.startswith(("=", "+", "-", "@")) else name
    try:
        when = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except OSError:
        when = ""
    return Item(name, modified=when)


def read(file: Path, bits: images.Bits = "auto") -> tuple[images.Floats, str]:
    """Return pixels, and the camera's own note of when they were taken; `bits` as in `images.read`.

    Raises `DataError` in words that do not depend on where the file is.
    """
    try:
        return images.read(file, bits=bits), images.header(file, bits=bits).captured_at
    except DataError as error:
        raise DataError(str(error).replace(str(file), "the file")) from None


def unfit(pixels: images.Floats) -> str:
    """Return why an image of such sides is not scored, "" if it is."""
    smallest, largest = images.SIDES
    if min(pixels.shape[:2]) >= smallest and max(pixels.shape[:2]) <= largest:
        return ""
    found = f"{pixels.shape[1]} x {pixels.shape[0]}"
    repair = "enlarge it, or leave it out" if min(pixels.shape[:2]) < smallest else "cut it into parts"
    return f"expected sides of {smallest} to {largest} pixels, found {found}; {repair}"
