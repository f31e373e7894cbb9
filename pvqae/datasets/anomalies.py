"""Synthetic defects with exact masks, from local to global: for the demo, the frozen gate and experiments.

A defect has a shape (where, which grows with `extent` and only grows) and a content (what is there, the same for every
extent). The mask is where the picture visibly changed, and nothing changes outside it.
H W: pixels of the image.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import maximum_filter

from pvqae.samples.images import Floats, Mask

_VISIBLE = 0.02  # of the range: five grey levels of 8 bit
_ROWS = 512  # of an image whose distances are taken at once: a line scan's are twenty times its decoded size
_CLOSED = 5  # pixels, the side of the square that fills specks
Rng = np.random.Generator
Anomaly = Callable[[Floats, Rng, float], tuple[Floats, Mask]]
_Box = tuple[slice, slice]  # rows and columns of the image
_Content = Callable[[_Box], NDArray[np.floating]]  # what a box has in it where the defect is


def _noise(shape: tuple[int, ...], rng: Rng, cells: int = 6) -> Floats:
    """Return a smooth random field (H, W) in about -1 .. 1 with `cells` bumps a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _ragged(shape: tuple[int, ...], rng: Rng, by: float) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Yield the distance in pixels from a random centre, along a random ellipse, changed by up to about the share `by`:
    some rows of it, then the next.
    """
    y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)[None]
    y, x = y - round(rng.uniform(0.2, 0.8) * (shape[0] - 1)), x - round(rng.uniform(0.2, 0.8) * (shape[1] - 1))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
    noise = _noise(shape, rng)
    for start in range(0, shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        u, v = np.cos(angle) * x + np.sin(angle) * y[rows], np.cos(angle) * y[rows] - np.sin(angle) * x
        yield rows, np.hypot(u / stretch, v * stretch) * (1 + by * noise[rows])


def _blob(shape: tuple[int, ...], rng: Rng, extent: float) -> Mask:
    """Return a ragged blob on about `extent` of the image: all of it at 1, and never under 2 pixels of radius."""
    radius, inside = max(2.0, np.sqrt(extent * shape[0] * shape[1] / np.pi)), np.empty(shape, dtype=np.bool_)
    for rows, away in _ragged(shape, rng, 0.35):
        inside[rows] = (away <= radius) | (extent >= 1)
    return inside


def _box(inside: Mask, margin: int) -> _Box:
    """Return the smallest box around what is inside, `margin` pixels larger on each side; all of it where none is."""
    if not inside.any():
        return slice(None), slice(None)
    found = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(max(int(n[0]) - margin, 0), int(n[-1]) + 1 + margin) for n in found)
    return rows, columns


def _closed(mask: Mask) -> Mask:
    """Fill specks: pixels that kept their value by chance, inside a defect."""
    picture = Image.fromarray(mask).convert("L")
    picture = picture.filter(ImageFilter.MaxFilter(_CLOSED)).filter(ImageFilter.MinFilter(_CLOSED))
    closed: Mask = (np.asarray(picture) > 0) | mask
    return closed


def _blend(image: Floats, content: _Content, share: NDArray[np.floating] | Mask) -> tuple[Floats, Mask]:
    """Blend `content` into a copy of `image` by `share` (H, W) in 0 .. 1; return it and where that is visible.

    Only the box in which anything can be visible is computed.
    """
    box = _box(share > _VISIBLE, 2 * _CLOSED)
    part, weight = image[box], share[box][..., None]
    mixed = np.clip(part + weight * (content(box) - part), 0, 1).astype(np.float32)
    changed = _closed(np.abs(mixed - part).max(axis=2) > _VISIBLE)
    made, mask = image.copy(), np.zeros(image.shape[:2], dtype=np.bool_)
    made[box], mask[box] = np.where(changed[..., None], mixed, part), changed
    return made, mask


def _grey(image: Floats) -> bool:
    red, green, blue = np.moveaxis(image, 2, 0)
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _shift(image: Floats, rng: Rng, low: float, high: float) -> Floats:
    """Return a constant (3,) to add, away from the image's mean so that clipping does not hide it; grey stays grey."""
    size = rng.uniform(low, high, 3)
    size = np.full(3, size.mean()) if _grey(image) else size
    return np.where(image.mean(axis=(0, 1)) < 0.5, size, -size).astype(np.float32)


def _scratch(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Draw a thin bright or dark curve; `extent` is its length in diagonals of the image."""
    height, width, _ = image.shape
    start, turn = rng.uniform(0.25, 0.75, 2) * (height, width), rng.uniform(-1, 1)
    heading, thickness = rng.uniform(0, 2 * np.pi), max(1.0, min(height, width) * rng.uniform(0.006, 0.014))
    diagonal = float(np.hypot(height, width))
    along = np.arange(0, max(extent * diagonal, 2), 0.5)
    angles = heading + turn * along / diagonal * np.pi
    points = start[:, None] + np.cumsum([np.sin(angles), np.cos(angles)], axis=1) * 0.5
    rows, columns = np.rint(points).astype(np.int64)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    line = np.zeros((height, width), dtype=np.bool_)
    line[rows[inside], columns[inside]] = True
    around = round(thickness / 2)
    box = _box(line, around)
    line[box] = maximum_filter(line[box], 2 * around + 1, mode="constant")
    return _brighter(image, _shift(image, rng, 0.15, 0.45), line)


def _brighter(image: Floats, shift: Floats, share: NDArray[np.floating] | Mask) -> tuple[Floats, Mask]:
    return _blend(image, lambda box: image[box] + shift, share)


def _spot(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Brighten or darken a blob with the texture still in it."""
    inside = _blob(image.shape[:2], rng, extent)
    return _brighter(image, _shift(image, rng, 0.1, 0.35), inside)


def _cutpaste(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Paste the image's own texture from elsewhere, mirrored and a little brighter or darker, into a blob."""
    height, width, _ = image.shape
    inside = _blob((height, width), rng, extent)
    offset = (int(rng.integers(height // 4, max(height // 4 + 1, 3 * height // 4))), int(rng.integers(0, width)))
    shift = _shift(image, rng, 0.05, 0.15)

    def foreign(box: _Box) -> Floats:
        # As if the mirrored image were rolled by the offset.
        rows, columns = (np.arange(n)[part] - by for n, part, by in zip((height, width), box, offset, strict=True))
        pasted: Floats = image[::-1, ::-1][np.ix_(rows % height, columns % width)] + shift
        return pasted

    return _blend(image, foreign, inside)


def _fill(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Fill a blob with one flat colour near the image's mean: something is missing."""
    inside = _blob(image.shape[:2], rng, extent)
    flat = image.mean(axis=(0, 1)) + _shift(image, rng, 0.08, 0.2)
    return _blend(image, lambda box: flat, inside)


def _stain(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Add a diffuse blot without an edge, strongest in its middle."""
    share = np.empty(image.shape[:2])
    radius = max(1.0, np.sqrt(extent * image.shape[0] * image.shape[1] / np.pi))
    for rows, away in _ragged(image.shape[:2], rng, 0.25):
        share[rows] = np.exp(-2 * (away / radius) ** 2)
    return _brighter(image, _shift(image, rng, 0.1, 0.35), share)


def _colour_shift(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Tint weakly (make grey images brighter or darker), up to the whole image."""
    inside = _blob(image.shape[:2], rng, extent)
    return _brighter(image, _shift(image, rng, 0.04, 0.14), inside)


def _blur(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Blur the texture as if out of focus, up to the whole image; on a flat image the mask is empty."""
    inside = _blob(image.shape[:2], rng, extent)
    radius = max(2.0, min(image.shape[:2]) * rng.uniform(0.015, 0.03))
    eight = Image.fromarray(np.rint(image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return _blend(image, lambda box: np.asarray(eight, dtype=np.float32)[box] / 255, inside)


ANOMALIES: dict[str, Anomaly] = {
    "scratch": _scratch,
    "spot": _spot,
    "cutpaste": _cutpaste,
    "fill": _fill,
    "stain": _stain,
    "colour_shift": _colour_shift,
    "blur": _blur,
}
# Two disjoint groups: what chose a detector's read-outs must not also judge it at the gate.
GATE_KINDS = ("scratch", "cutpaste", "stain")
SELECTION_KINDS = ("spot", "fill", "colour_shift")
