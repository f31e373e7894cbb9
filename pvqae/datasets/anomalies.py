"""Synthetic defects with exact masks, from local to global: for the demo, the frozen gate and experiments.

A defect has a shape (where, which grows with `extent` and only grows) and a content (what is there, the same for every
extent). The mask is where the picture visibly changed, and nothing changes outside it.
H W: pixels of the image.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pvqae.samples.images import Floats, Mask

_VISIBLE = 0.02  # of the range: five grey levels of 8 bit
Rng = np.random.Generator
Anomaly = Callable[[Floats, Rng, float], tuple[Floats, Mask]]


def _noise(shape: tuple[int, ...], rng: Rng, cells: int = 6) -> Floats:
    """Return a smooth random field (H, W) in about -1 .. 1 with `cells` bumps a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _distance(shape: tuple[int, ...], rng: Rng) -> Floats:
    """Return distance in pixels from a random centre, along a random ellipse."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    y, x = y - round(rng.uniform(0.2, 0.8) * (shape[0] - 1)), x - round(rng.uniform(0.2, 0.8) * (shape[1] - 1))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    away: Floats = np.hypot(u / stretch, v * stretch)
    return away


def _blob(shape: tuple[int, ...], rng: Rng, extent: float) -> Mask:
    """Return a ragged blob on about `extent` of the image: all of it at 1, and never under 2 pixels of radius."""
    away = _distance(shape, rng) * (1 + 0.35 * _noise(shape, rng))
    radius = max(2.0, np.sqrt(extent * shape[0] * shape[1] / np.pi))
    inside: Mask = (away <= radius) | (extent >= 1)
    return inside


def _closed(mask: Mask) -> Mask:
    """Fill specks: pixels that kept their value by chance, inside a defect."""
    picture = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))
    closed: Mask = (np.asarray(picture) > 0) | mask
    return closed


def _blend(image: Floats, content: NDArray[np.floating], share: Floats | Mask) -> tuple[Floats, Mask]:
    """Blend `content` into `image` by `share` (H, W) in 0 .. 1; return the image and where that is visible."""
    mixed = np.clip(image + share[..., None] * (content - image), 0, 1).astype(np.float32)
    mask = _closed(np.abs(mixed - image).max(axis=2) > _VISIBLE)
    return np.where(mask[..., None], mixed, image), mask


def _shift(image: Floats, rng: Rng, low: float, high: float) -> Floats:
    """Return a constant (3,) to add, away from the image's mean so that clipping does not hide it; grey stays grey."""
    grey = np.ptp(image, axis=2).max() == 0
    size = rng.uniform(low, high, 3)
    size = np.full(3, size.mean()) if grey else size
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
    drawn = np.zeros((height, width), dtype=np.bool_)
    drawn[rows[inside], columns[inside]] = True
    line = Image.fromarray(drawn).convert("L").filter(ImageFilter.MaxFilter(2 * round(thickness / 2) + 1))
    return _blend(image, image + _shift(image, rng, 0.15, 0.45), np.asarray(line) > 0)


def _spot(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Brighten or darken a blob with the texture still in it."""
    inside = _blob(image.shape[:2], rng, extent)
    return _blend(image, image + _shift(image, rng, 0.1, 0.35), inside)


def _cutpaste(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Paste the image's own texture from elsewhere, mirrored and a little brighter or darker, into a blob."""
    height, width, _ = image.shape
    inside = _blob((height, width), rng, extent)
    offset = (int(rng.integers(height // 4, max(height // 4 + 1, 3 * height // 4))), int(rng.integers(0, width)))
    foreign = np.roll(image[::-1, ::-1], offset, axis=(0, 1)) + _shift(image, rng, 0.05, 0.15)
    return _blend(image, foreign, inside)


def _fill(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Fill a blob with one flat colour near the image's mean: something is missing."""
    inside = _blob(image.shape[:2], rng, extent)
    flat = np.broadcast_to(image.mean(axis=(0, 1)) + _shift(image, rng, 0.08, 0.2), image.shape)
    return _blend(image, flat, inside)


def _stain(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Add a diffuse blot without an edge, strongest in its middle."""
    away = _distance(image.shape[:2], rng) * (1 + 0.25 * _noise(image.shape[:2], rng))
    radius = max(1.0, np.sqrt(extent * image.shape[0] * image.shape[1] / np.pi))
    return _blend(image, image + _shift(image, rng, 0.1, 0.35), np.exp(-2 * (away / radius) ** 2))


def _colour_shift(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Tint weakly (make grey images brighter or darker), up to the whole image."""
    inside = _blob(image.shape[:2], rng, extent)
    return _blend(image, image + _shift(image, rng, 0.04, 0.14), inside)


def _blur(image: Floats, rng: Rng, extent: float) -> tuple[Floats, Mask]:
    """Blur the texture as if out of focus, up to the whole image; on a flat image the mask is empty."""
    inside = _blob(image.shape[:2], rng, extent)
    radius = max(2.0, min(image.shape[:2]) * rng.uniform(0.015, 0.03))
    eight = Image.fromarray(np.rint(image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return _blend(image, np.asarray(eight, dtype=np.float32) / 255, inside)


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
