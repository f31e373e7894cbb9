"""Magnetic Tile Surface Defects (MTSD): the layout of the original files, its photographs grouped by tile.

Its 1,344 images are about 224 tiles at up to 7 exposures; the file names do not say which show the same tile. A tile
that is divided leaks from train to test. `mtsd_groups.txt` has a line for each tile: the numbers of its photographs. It
was found once by following size, texture and exposure through the numbers (release 0.1 has the code), and joins what is
uncertain, since two tiles in one group only cost a little data: 219 groups, 208 of them with 6 images, the largest with
15 (a cracked tile photographed three times).
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

from pvqae.core.errors import DataError
from pvqae.datasets.layouts import Found, defect, folders, normal, pictures
from pvqae.samples import images

_NAME = re.compile(r"exp\d+_num_(\d+)")
_FREE = "MT_Free"


def parts(root: Path) -> dict[str, Path]:
    """Return its only category, whatever its folder is called."""
    return {"magnetic_tile": root} if pictures(root / _FREE / "Imgs") else {}


def scan(category: str, root: Path) -> list[Found]:
    """Return its photographs, the jpg files; the png of the same name is the mask. Decodes the masks of defects.

    Raises `DataError` for a name without a number.
    """
    found = [
        _photograph(category, root, place, path)
        for place in folders(root)
        for path in pictures(place / "Imgs")
        if path.suffix.lower() != ".png"
    ]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_checked, found))


@cache
def _tiles() -> dict[int, int]:
    """Return the tile of each photograph by its number: the lowest number among the tile's photographs."""
    lines = Path(__file__).with_name("mtsd_groups.txt").read_text("utf-8").splitlines()
    groups = [[int(number) for number in line.split()] for line in lines]
    return {number: min(group) for group in groups for number in group}


def _photograph(category: str, root: Path, place: Path, path: Path) -> Found:
    """Return a photograph, its sample_id without the folder Imgs; good tiles have masks too, empty ones."""
    name = _NAME.fullmatch(path.stem)
    if name is None:
        raise DataError(f"{path}: expected a name like exp1_num_12.jpg; restore its original name")
    mask = path.with_suffix(".png")
    present = mask.is_file()
    if place.name == _FREE:
        kind = "good"
        found = replace(normal(category, root, path), unneeded=(mask,) * present)
    else:
        kind = place.name.removeprefix("MT_").lower()
        found = defect(category, root, path, kind, mask if present else None)
    tile = _tiles().get(int(name[1]), int(name[1]))
    return replace(found, sample_id=f"{category}/{kind}/{path.stem}", group_id=f"{category}/tile_{tile}")


def _checked(found: Found) -> Found:
    """Return `found` with a flaw where its mask is empty, as four masks of uneven tiles are published: such a defect is
    nowhere and cannot be judged.
    """
    if found.mask_path is None:
        return found
    try:
        marked = images.read_mask(found.mask_path).any()
    except DataError:  # for the validation to tell
        return found
    return found if marked else replace(found, flaw="its mask is empty")
