"""Which images of MTSD show the same magnetic tile: the file names do not say.

Its 1,344 images are about 224 tiles at up to 7 exposures. Sorted by the number in the name the exposure counts up, but
two tiles may be photographed in turns, and crops differ. A tile that is divided leaks from train to test; two tiles in
one group only cost a little data. So whatever is uncertain is joined; that an exposure occurs once per tile keeps the
joining from swallowing everything. Measured: 219 groups, 208 of them with 6 images, the largest with 15 (a cracked tile
photographed three times).

Magnetic Tile Surface Defects: the layout of the original files, its exposures grouped by tile.
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pvqae.core.errors import DataError
from pvqae.datasets.layouts import Found, defect, folders, normal, pictures
from pvqae.samples import images

SIDE = 64  # pixels of the texture that is compared
SHIFT = 4  # crops of one tile are off by up to so many of them
OPEN_TRACKS = 12  # so many tiles at most are photographed in turns
STEP = 300  # numbers between two exposures: median 20, 99 % below 190
ALIKE, NEAR_SIZE = 0.4, 0.1  # correlation (same tile .86 in the median, others .34), log ratio of sides
PIECE_GAP, PIECE_SIDE = 1500, 0.15  # pieces of one tile: numbers between them, log ratio of the side that agrees best
SAME, SAME_SIZE = 0.93, 0.05  # the same picture again, anywhere: reached by 1 of 10,000 pairs of different groups


@dataclass(frozen=True, eq=False)
class Exposure:
    """One photograph: its number and exposure, from the name; log of its sides; its high-passed texture, norm 1."""

    number: int
    exposure: int
    size: NDArray[np.float64]  # (2,)
    texture: NDArray[np.float32]  # (SIDE, SIDE)


def exposure(number: int, count: int, grey: NDArray[np.float32]) -> Exposure:
    """Describe a grey image (H0, W0) in [0, 1]; `count` is the exposure number of its name."""
    small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    fine = small - ndimage.gaussian_filter(small, 6)
    fine -= fine.mean()
    return Exposure(number, count, np.log(grey.shape), fine / (np.linalg.norm(fine) + 1e-9))


def _correlation(a: Exposure, b: Exposure) -> float:
    """The best correlation of two textures over small shifts, -1 .. 1."""
    product = np.fft.rfft2(a.texture) * np.conj(np.fft.rfft2(b.texture))
    near = np.r_[0 : SHIFT + 1, -SHIFT:0]
    return float(np.fft.irfft2(product, (SIDE, SIDE))[np.ix_(near, near)].max())


def _fit(last: Exposure, new: Exposure) -> float | None:
    """How well `new` continues a tile that was last seen as `last`; None if it does not."""
    later = new.exposure - last.exposure
    if later <= 0 or new.number - last.number >= STEP * later:
        return None
    alike, apart = _correlation(last, new), float(np.abs(last.size - new.size).max())
    return alike - 3 * apart if alike > ALIKE or apart < NEAR_SIZE else None


def _tracks(items: Sequence[Exposure]) -> list[list[int]]:
    """Follow each tile through the numbers, exposure counting up."""
    tracks: list[list[int]] = []
    for index, item in enumerate(items):
        open_tracks = tracks[-OPEN_TRACKS:]
        fits = [(fit, track) for track in open_tracks if (fit := _fit(items[track[-1]], item)) is not None]
        if fits:
            max(fits, key=lambda pair: pair[0])[1].append(index)
        else:
            tracks.append([index])
    return tracks


def _gap(items: Sequence[Exposure], a: Iterable[int], b: Iterable[int]) -> float:
    """Numbers between two pieces of one tile, 0 if they interleave, infinite if they cannot be one."""
    one, two = [items[i] for i in a], [items[i] for i in b]
    if {item.exposure for item in one} & {item.exposure for item in two}:
        return np.inf
    if min(np.abs(x.size - y.size).min() for x in one for y in two) > PIECE_SIDE:
        return np.inf
    first, second = sorted(([x.number for x in one], [y.number for y in two]), key=min)
    gap = max(0, min(second) - max(first))
    return gap if gap < PIECE_GAP else np.inf


def _join_pieces(items: Sequence[Exposure], tracks: list[list[int]]) -> list[list[int]]:
    """Join pieces that together are one tile, nearest first: a crop may look like another tile."""
    tracks = list(tracks)
    while True:
        near = ((a, b) for a in range(len(tracks)) for b in range(a + 1, min(a + OPEN_TRACKS, len(tracks))))
        gaps = [(_gap(items, tracks[a], tracks[b]), a, b) for a, b in near]
        gap, a, b = min(gaps, default=(np.inf, 0, 0))
        if gap == np.inf:
            return tracks
        tracks[a] = sorted(tracks[a] + tracks.pop(b))


def _join_same(items: Sequence[Exposure], tracks: list[list[int]]) -> NDArray[np.int64]:
    """Label per item; tracks that share nearly the same picture get one label."""
    labels = np.empty(len(items), dtype=np.int64)
    for label, track in enumerate(tracks):
        labels[track] = label
    textures = np.stack([item.texture.ravel() for item in items])
    sizes = np.stack([item.size for item in items])
    alike = textures @ textures.T > SAME
    for a, b in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
        if labels[a] != labels[b] and np.abs(sizes[a] - sizes[b]).max() < SAME_SIZE:
            labels[labels == labels[b]] = labels[a]
    return labels


def group(items: Sequence[Exposure]) -> list[int]:
    """The tile of each exposure, in order, named by the lowest number among its photographs."""
    if not items:
        return []
    order = sorted(range(len(items)), key=lambda i: (items[i].number, items[i].exposure))
    ordered = [items[i] for i in order]
    labels = _join_same(ordered, _join_pieces(ordered, _tracks(ordered)))
    first = {label: item.number for label, item in reversed(list(zip(labels, ordered, strict=True)))}
    names = dict(zip(order, (first[label] for label in labels), strict=True))
    return [names[i] for i in range(len(items))]


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


def _exposure(found: Found) -> Exposure | None:
    name = NAME.fullmatch(found.path.stem)
    if name is None:
        raise DataError(f"{found.path}: expected a name like exp1_num_12.jpg; restore its original name")
    try:
        return exposure(int(name[2]), int(name[1]), images.read(found.path)[..., 0])
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
    names = iter(group([item for item in exposures if item is not None]))
    return [
        replace(f, group_id=f.sample_id if item is None else f"{category}/tile_{next(names)}")
        for f, item in zip(found, exposures, strict=True)
    ]
