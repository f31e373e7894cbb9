"""Magnetic Tile Surface Defects: the layout of the original files, its exposures grouped by tile."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pvqae.datasets import images, tiles
from pvqae.datasets.layouts import Found, defect, folders, normal, pictures
from pvqae.errors import DataError

NAME = re.compile(r"exp(\d+)_num_(\d+)")
FREE = "MT_Free"


def parts(root: Path) -> dict[str, Path]:
    """Its only category, whatever its folder is called."""
    return {"magnetic_tile": root} if pictures(root / FREE / "Imgs") else {}


def _photograph(category: str, root: Path, place: Path, path: Path) -> Found:
    """The sample_id does without the folder Imgs; good tiles have masks too, empty ones."""
    mask = path.with_suffix(".png")
    present = mask.is_file()
    if place.name == FREE:
        return replace(
            normal(category, root, path), sample_id=f"{category}/good/{path.stem}", unneeded=(mask,) * present
        )
    kind = place.name.removeprefix("MT_").lower()
    found = defect(category, root, path, kind, mask if present else None)
    return replace(found, sample_id=f"{category}/{kind}/{path.stem}")


def _exposure(found: Found) -> tiles.Exposure | None:
    name = NAME.fullmatch(found.path.stem)
    if name is None:
        raise DataError(f"{found.path}: expected a name like exp1_num_12.jpg; restore its original name")
    try:
        return tiles.exposure(int(name[2]), int(name[1]), images.read(found.path)[..., 0])
    except DataError:  # unreadable: a group of its own here, quarantined with the reason by the build
        return None


def _checked(found: Found) -> Found:
    """Four masks of uneven tiles are empty as published: such a defect is nowhere and cannot be judged."""
    if found.mask_path is None:
        return found
    try:
        marked = images.read_mask(found.mask_path).any()
    except DataError:  # for the validation to tell
        return found
    return found if marked else replace(found, flaw="its mask is empty")


def scan(category: str, root: Path) -> list[Found]:
    """Its photographs are jpg files, the png beside each is its mask. Decodes all, to tell the tiles apart."""
    found = [
        _photograph(category, root, place, path)
        for place in folders(root)
        for path in pictures(place / "Imgs")
        if path.suffix.lower() != ".png"
    ]
    with ThreadPoolExecutor() as pool:
        exposures = list(pool.map(_exposure, found))
        found = list(pool.map(_checked, found))
    names = iter(tiles.group([item for item in exposures if item is not None]))
    return [
        replace(f, group_id=f.sample_id if item is None else f"{category}/tile_{next(names)}")
        for f, item in zip(found, exposures, strict=True)
    ]
