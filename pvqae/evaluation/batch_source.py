"""Where the images of a batch come from: files and folders here, a bucket in the flows."""

import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pvqae.datasets import images, manifest
from pvqae.errors import DataError


@dataclass(frozen=True)
class Item:
    """An image where it lies. `identity` names its content where the store does (else ""), so that it need not be
    fetched again; `modified` is ISO 8601 in UTC, or "" where it is not known."""

    path: str
    identity: str = ""
    modified: str = ""


class Source(Protocol):
    """Where images come from: files here, a bucket in the flows."""

    def items(self) -> Iterable[Item]: ...
    def file(self, item: Item, scratch: Path) -> Path:
        """A local file of the item, below `scratch` if it was fetched. Raises `PvqaeError` or `OSError`."""
        ...


@dataclass(frozen=True)
class Files:
    """Files, and the images in folders with all below them, sorted. Links to folders are not followed."""

    places: tuple[Path, ...]

    def items(self) -> Iterator[Item]:
        """Raises `DataError` for a place that is not there."""
        for place in self.places:
            if place.is_dir():
                yield from _in_folder(place)
            elif place.exists():
                yield _item(place)
            else:
                raise DataError(f"{place}: expected an image or a folder of images, found nothing; correct the path")

    def file(self, item: Item, scratch: Path) -> Path:
        path = Path(item.path)
        if path.is_symlink() and path not in self.places and not any(map(partial(_below, path), self.places)):
            raise DataError(f"{path}: expected a file of this folder, found a link that leaves it; copy the file")
        if not path.exists():
            raise DataError(
                f"{path}: expected an image, found no file: it is gone, or its name is not UTF-8 or has control "
                "characters, here as \\x.. codes; rename it"
            )
        return path


def _below(path: Path, place: Path) -> bool:
    try:
        return path.resolve().is_relative_to(place.resolve())
    except RuntimeError:  # links in a circle
        return False


def _in_folder(place: Path) -> Iterator[Item]:
    for folder, below, names in os.walk(place):
        below.sort()
        for name in sorted(names):
            if is_image(name):
                yield _item(Path(folder, name))


def is_image(name: str) -> bool:
    """Whether a name in a folder or bucket is meant as an image: other files there are not our business."""
    return Path(name).suffix.lower() in images.SUFFIXES and not Path(name).name.startswith(".")


def _item(path: Path) -> Item:
    """Named as tables can hold it: a spreadsheet takes what starts with = + - @ for a formula."""
    name = manifest.shown(path.as_posix())
    name = f"./{name}" if name.startswith(("=", "+", "-", "@")) else name
    try:
        when = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except OSError:
        when = ""
    return Item(name, modified=when)
