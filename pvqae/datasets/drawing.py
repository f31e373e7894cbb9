"""Masks that are no single file: drawn from the shapes of an annotation, or united from several files.

Coordinates are continuous: the pixel in row r and column c covers [c, c + 1) x [r, r + 1), and is marked where its
centre (c + 0.5, r + 0.5) lies inside of a shape. A polygon's inside is even-odd, and several shapes are united. A
centre that is exactly on an outline belongs to the polygon on its right or below, so polygons that touch share no pixel
and leave none out (scikit-image would count it on both sides, and Pillow draws the outline's pixels, too).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pvqae.core.errors import DataError
from pvqae.samples import decoding, images
from pvqae.samples.images import Mask

Point = tuple[float, float]  # x, y
_FAR = 1e7  # pixels: beyond it, arithmetic would lose the pixels themselves


class Shape(Protocol):
    """Something that marks pixels of a mask (H0, W0); raises `ValueError`, in words, where it doesn't fit."""

    def draw(self, mask: Mask) -> None:
        """Mark the shape's pixels."""
        ...


@dataclass(frozen=True)
class Drawing:
    """The shapes of one image, from the file `origin`; `size` is the height and width that it states, if it does."""

    origin: Path
    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None
    files: tuple[Path, ...] = ()  # the images that it is united from

    def mask(self, image: Path, height: int, width: int) -> Mask:
        """Draw the mask (height, width) of `image`. Raises `DataError`, naming both files, where it has another size or
        a shape cannot be drawn.
        """
        mask = np.zeros((height, width), dtype=np.bool_)
        try:
            if self.size not in (None, mask.shape):
                raise ValueError(f"expected marks on {width} x {height} pixels, found {_words(self.size)}")
            for shape in self.shapes:
                shape.draw(mask)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{self.origin}, {image}: {error}; correct the one that is wrong") from None
        return mask


def _words(size: tuple[int, ...] | None) -> str:
    return f"{size[1]} x {size[0]}" if size else "none"


def _finite(values: Sequence[float] | Sequence[Point]) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if not (np.abs(found) <= _FAR).all():
        raise ValueError(f"expected finite coordinates within {_FAR:g} pixels, found others")
    return found


@dataclass(frozen=True)
class Polygon:
    """A closed outline, even-odd inside; `relative` to the image's width and height instead of in pixels."""

    points: tuple[Point, ...]
    relative: bool = False

    def draw(self, mask: Mask) -> None:
        """Mark the pixels whose centre is inside: those with an odd number of the outline's crossings to their left."""
        if len(self.points) < 3:
            raise ValueError(f"expected a polygon of at least 3 points, found {len(self.points)}")
        height, width = mask.shape
        start = _finite(self.points) * ((width, height) if self.relative else 1)
        end = np.roll(start, -1, axis=0)
        # From the upper end down, so that two polygons cross their common edge at the very same number.
        down = start[:, 1] <= end[:, 1]
        (x, y), (to_x, to_y) = (np.where(down[:, None], *pair).T for pair in ((start, end), (end, start)))
        top, bottom = (int(np.clip(row, 0, height)) for row in (np.floor(y.min()), np.ceil(to_y.max())))
        left, right = (int(np.clip(c, 0, width)) for c in (np.floor(start[:, 0].min()), np.ceil(start[:, 0].max())))
        rows = np.arange(top, bottom) + 0.5
        edge, row = np.nonzero((y[:, None] <= rows) & (rows < to_y[:, None]))
        crossing = x[edge] + (rows[row] - y[edge]) / (to_y - y)[edge] * (to_x - x)[edge]
        column = np.clip(np.ceil(crossing - 0.5), left, right).astype(np.int64) - left
        odd = np.zeros((len(rows), right - left + 1), dtype=np.bool_)
        np.logical_xor.at(odd, (row, column), True)
        mask[top:bottom, left:right] |= np.logical_xor.accumulate(odd, axis=1)[:, :-1]


def box(x: float, y: float, width: float, height: float, degrees: float = 0.0, around: Point | None = None) -> Polygon:
    """Return a rectangle, turned clockwise (as seen on the image) around a point, by default its centre."""
    corners = _finite([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    if degrees:
        centre = np.asarray((x + width / 2, y + height / 2) if around is None else around)
        angle = np.deg2rad(degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = (corners - centre) @ turn + centre
    return Polygon(tuple((float(left), float(top)) for left, top in corners))


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes in pixels, turned clockwise around the centre."""

    x: float
    y: float
    half_width: float
    half_height: float
    degrees: float = 0.0

    def draw(self, mask: Mask) -> None:
        """Mark the pixels whose centre is inside."""
        x, y, half_width, half_height, angle = _finite(
            [self.x, self.y, self.half_width, self.half_height, np.deg2rad(self.degrees)]
        )
        if half_width <= 0 or half_height <= 0:
            raise ValueError(f"expected an ellipse with an extent, found half axes {half_width:g} and {half_height:g}")
        down, right = np.arange(mask.shape[0])[:, None] + 0.5 - y, np.arange(mask.shape[1]) + 0.5 - x
        along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
        mask |= ((along / half_width) ** 2 + (across / half_height) ** 2 < 1).astype(np.bool_)


@dataclass(frozen=True)
class Runs:
    """Lengths of runs in turn unmarked and marked, down the columns (COCO) of the image, or along the rows (CVAT) of a
    rectangle with its upper left pixel at (top, left).
    """

    counts: tuple[int, ...]
    size: tuple[int, int]  # height, width
    by_rows: bool = False
    top: int = 0
    left: int = 0

    def draw(self, mask: Mask) -> None:
        """Mark the pixels of the marked runs."""
        if min(self.counts, default=0) < 0 or sum(self.counts) != self.size[0] * self.size[1]:
            raise ValueError(
                f"expected runs over {_words(self.size)} pixels, found {len(self.counts)} over {sum(self.counts)}"
            )
        if not self.by_rows and self.size != mask.shape:
            raise ValueError(f"expected runs over {_words(mask.shape)} pixels, found {_words(self.size)}")
        marked = np.arange(len(self.counts)) % 2 == 1
        _paste(mask, np.repeat(marked, self.counts).reshape(self.size, order="C" if self.by_rows else "F"), self)


@dataclass(frozen=True)
class Stamp:
    """An image file's content, a mask itself, with its upper left pixel at (top, left)."""

    data: bytes
    top: int
    left: int

    def draw(self, mask: Mask) -> None:
        """Mark what the small mask marks."""
        _paste(mask, decoding.opened(BytesIO(self.data), len(self.data), decoding.labels)[0], self)


@dataclass(frozen=True)
class Picture:
    """A mask in a file of the image's size."""

    path: Path

    def draw(self, mask: Mask) -> None:
        """Mark what the file marks."""
        found = images.read_mask(self.path)
        if found.shape != mask.shape:
            raise ValueError(f"expected a mask of {_words(mask.shape)} pixels, found {_words(found.shape)}")
        mask |= found


class _Placed(Protocol):
    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...


def _paste(mask: Mask, part: Mask, place: _Placed) -> None:
    bottom, right = place.top + part.shape[0], place.left + part.shape[1]
    if min(place.top, place.left) < 0 or bottom > mask.shape[0] or right > mask.shape[1]:
        raise ValueError(
            f"expected a mask inside of {_words(mask.shape)} pixels, found {_words(part.shape)} at "
            f"({place.left}, {place.top})"
        )
    mask[place.top : bottom, place.left : right] |= part


def united(files: Sequence[Path], origin: Path) -> Drawing:
    """Return the mask that several files of the image's size mark together."""
    return Drawing(origin, tuple(map(Picture, files)), files=tuple(files))


def coco_counts(text: str) -> tuple[int, ...]:
    """Return the runs in COCO's compressed text: 5 bits a character, the lowest first, each run as the difference to
    the last but one. Raises `ValueError` for other text.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"expected COCO's compressed runs, found {chr(character)!r} in them")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("expected COCO's compressed runs, found text that ends within one")
    return tuple(counts)


@dataclass(frozen=True)
class Brush:
    """Label Studio's brush: RGBA of the whole image in its run-length code, marked where alpha is not 0."""

    code: bytes
    size: tuple[int, int]  # height, width

    def draw(self, mask: Mask) -> None:
        """Mark the pixels that were painted."""
        if self.size != mask.shape:
            raise ValueError(f"expected marks on {_words(mask.shape)} pixels, found {_words(self.size)}")
        bits = "".join(format(byte, "08b") for byte in self.code)
        at = 0

        def take(count: int) -> int:
            nonlocal at
            at += count
            if at > len(bits):
                raise ValueError("expected Label Studio's runs of the whole image, found a part")
            return int(bits[at - count : at], 2)

        total, word = take(32), take(5) + 1
        if total != 4 * mask.size:
            raise ValueError(f"expected runs of {4 * mask.size} values, found {total}")
        lengths = [take(4) + 1 for _ in range(4)]
        values = np.zeros(total, dtype=np.bool_)
        done = 0
        while done < total:
            repeated = take(1)
            count = take(lengths[take(2)]) + 1
            values[done : done + count] = take(word) > 0 if repeated else [take(word) > 0 for _ in range(count)]
            done += count
        mask |= values.reshape(*mask.shape, 4)[..., 3]
