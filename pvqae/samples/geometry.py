"""Lay decoded images on the model's square inputs, and maps back on the images: boxes and masks of what they mark.

Needs numpy and Pillow alone but for resizing and `connected`: an exported detector carries it.
H0 W0 pixels of the file; H W pixels of the canvas (the image in model pixels); S side of the model's square input.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pvqae.core.errors import DataError
from pvqae.samples import images
from pvqae.samples.images import Floats, Mask

if TYPE_CHECKING:
    from pvqae.core import config

_MAX_VIEWS = 4096  # tiles of one image
_LISTED = 50  # regions of an image that are described
_Numbered = tuple[NDArray[np.integer], int]


@dataclass(frozen=True, eq=False)
class View:
    """One square input of the model. Its pixels are cut when they are asked for: views overlap, and copies of all of
    them would take nearly twice the canvas again.
    """

    canvas: Floats  # (H, W, 3) in [0, 1], the whole of what it is cut out of
    side: int  # S
    top: int  # canvas row of the view's row 0; negative where padding comes first
    left: int

    @property
    def pixels(self) -> Floats:
        """(3, S, S) in [0, 1]; padding repeats the border, the least foreign thing to see there."""
        part = self.canvas[self.place]
        if any(map(any, self._around)):
            part = np.pad(part, [*self._around, (0, 0)], mode="edge")
        return np.ascontiguousarray(part.transpose(2, 0, 1))

    @property
    def valid(self) -> Mask:
        """(S, S), False on padding."""
        return np.pad(np.ones((self.height, self.width), dtype=np.bool_), self._around)

    @property
    def height(self) -> int:
        """Rows of the view that carry canvas pixels."""
        return int(min(self.top + self.side, self.canvas.shape[0]) - max(self.top, 0))

    @property
    def width(self) -> int:
        """Columns of the view that carry canvas pixels."""
        return int(min(self.left + self.side, self.canvas.shape[1]) - max(self.left, 0))

    @property
    def _around(self) -> list[tuple[int, int]]:
        """Rows and columns of padding, before and after."""
        before = max(-self.top, 0), max(-self.left, 0)
        return [(b, self.side - b - n) for b, n in zip(before, (self.height, self.width), strict=True)]

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the view that are not padding."""
        row, column = max(-self.top, 0), max(-self.left, 0)
        return slice(row, row + self.height), slice(column, column + self.width)

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that they cover."""
        row, column = max(self.top, 0), max(self.left, 0)
        return slice(row, row + self.height), slice(column, column + self.width)


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image in model pixels, as square views that cover it."""

    height: int
    width: int
    views: tuple[View, ...]
    source: tuple[int, int] | None = None  # rows and columns of the image, H0 W0; None: as the canvas

    @property
    def image_shape(self) -> tuple[int, int]:
        """H0, W0."""
        return self.source or (self.height, self.width)

    def stitch(self, maps: Iterable[NDArray[np.floating]]) -> Floats:
        """Return one map (H, W) from one (S, S) map per view, padding dropped; `maps` may be made one by one.

        Overlaps are averaged with weights that fall to the view's border, so that no seam shows where a view ends.
        """
        if len(self.views) == 1:
            (only,) = maps
            return only[self.views[0].inside].astype(np.float32)
        total, side = np.zeros((self.height, self.width), dtype=np.float32), self.views[0].side
        ramp = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) / side
        tent = np.outer(ramp, ramp)
        for view, values in zip(self.views, maps, strict=True):
            total[view.place] += tent[view.inside] * values[view.inside]
        for axis, starts in enumerate(({view.top for view in self.views}, {view.left for view in self.views})):
            total /= np.expand_dims(_weights(total.shape[axis], starts, ramp), 1 - axis)
        return total


def _resize(image: Floats, height: int, width: int) -> Floats:
    """Return antialiased (H, W, C) of a float image: torch keeps 16 bit precision and is as fast as Pillow on 8 bit."""
    if image.shape[:2] == (height, width):
        return image
    import torch  # a second that a flow which only looks for images does without

    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    result: Floats = small[0].permute(1, 2, 0).clamp_(0, 1).numpy()
    return result


def mask_of(mask_path: str, shape: tuple[int, ...], root: Path | None = None) -> Mask:
    """Return the mask in the pixels of a map of `shape` (H, W); empty where `mask_path` is."""
    if not mask_path:
        return np.zeros(shape, dtype=np.bool_)
    return resize_mask(images.read_mask(mask_path, root=root), shape[0], shape[1])


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Return the mask in (height, width) pixels: those at least half covered; of a tiny defect the best covered."""
    covered = _resize(mask[..., None].astype(np.float32), height, width)[..., 0]
    level = min(0.5, float(covered.max()))
    return covered >= level if level > 0 else np.zeros((height, width), dtype=np.bool_)


def _weights(length: int, starts: Iterable[int], ramp: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return what the weights of all views add up to along one side of the canvas: they are on a grid."""
    total = np.zeros(length, dtype=np.float32)
    for start in sorted(starts):
        inside = slice(max(-start, 0), length - start)
        total[max(start, 0) : start + len(ramp)] += ramp[inside]
    return total


def _starts(length: int, side: int, overlap: float) -> list[int]:
    count = 1 + math.ceil((length - side) / (side * (1 - overlap)) - 1e-6)
    return [round(start) for start in np.linspace(0, length - side, count)]


def _squash(image: Floats, params: "config.Image") -> Canvas:
    side = params.size
    return Canvas(side, side, (View(_resize(image, side, side), side, 0, 0),))


def _letterbox(image: Floats, params: "config.Image") -> Canvas:
    side, scale = params.size, scale_of(image.shape[:2], params)[0]
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    top, left = -((side - height) // 2), -((side - width) // 2)
    return Canvas(height, width, (View(_resize(image, height, width), side, top, left),))


def _tile(image: Floats, params: "config.Image") -> Canvas:
    side, scale = params.size, scale_of(image.shape[:2], params)[0]
    height, width = (max(side, round(length * scale)) for length in image.shape[:2])
    rows, columns = _starts(height, side, params.overlap), _starts(width, side, params.overlap)
    if len(rows) * len(columns) > _MAX_VIEWS:  # a thin strip is enlarged until its short side fills a tile
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise DataError(f"expected an image of at most {_MAX_VIEWS} tiles, found {found} pixels; cut it into parts")
    scaled = _resize(image, height, width)
    return Canvas(height, width, tuple(View(scaled, side, top, left) for top in rows for left in columns))


def _auto(image: Floats, params: "config.Image") -> Canvas:
    return _ASPECTS[_chosen(image.shape[:2])](image, params)


def _chosen(shape: tuple[int, ...]) -> str:
    return "squash" if 0.8 <= shape[1] / shape[0] <= 1.25 else "letterbox"


def scale_of(shape: tuple[int, ...], params: "config.Image") -> tuple[float, float]:
    """Return model pixels per pixel of an image of `shape` (H0, W0), along rows and columns."""
    side, short = params.size, min(shape)
    aspect = _chosen(shape) if params.aspect == "auto" else params.aspect
    if aspect == "squash":
        return side / shape[0], side / shape[1]
    if aspect == "letterbox":
        return (side / max(shape),) * 2
    wanted = math.floor(side * (1 + (params.tiles - 1) * (1 - params.overlap)) + 1e-6)
    # Enlarged to one tile at most: more pixels would say nothing more.
    return (max(side, min(wanted, short)) / short,) * 2


_ASPECTS = {"auto": _auto, "letterbox": _letterbox, "squash": _squash, "tile": _tile}


def canvas(image: Floats, params: "config.Image") -> Canvas:
    """Lay an image (H0, W0, 3) on square views of side S = `params.size`, as `params.aspect` says.

    squash: stretched, one view. letterbox: long side S, padded in the middle, one view. tile: `params.tiles` square
    views along the short side, that overlap by about `params.overlap`. auto: squash for width / height in 0.8 .. 1.25,
    else letterbox.
    """
    return replace(_ASPECTS[params.aspect](image, params), source=image.shape[:2])


def connected(mask: Mask) -> _Numbered:
    """Return the regions of a mask, connected through all 8 neighbours, numbered from 1 (H, W), and their count."""
    from scipy.ndimage import label  # not for an image without a mark

    numbered: _Numbered = label(mask, np.ones((3, 3)))
    return numbered


def marks(
    anomaly_map: NDArray[np.floating],
    threshold: float,
    shape: tuple[int, int],
    number: Callable[[Mask], _Numbered] = connected,
) -> dict[str, Any]:
    """Return what a pixel threshold marks in an image, from its map (H, W); plain values, as answers have them.

    marked_area: share of the image. region_count: how many connected regions. regions: the `_LISTED` with the highest
    values, these first: the box x, y, width, height and the area in pixels of the image, whose `shape` is (H0, W0), the
    area as a share of it, and the highest value of the map.
    """
    marked = anomaly_map > threshold
    found: dict[str, Any] = {"marked_area": _rounded(marked.mean()), "region_count": 0, "regions": []}
    if not marked.any():
        return found
    numbers, found["region_count"] = number(marked)
    row, column = np.nonzero(marked)
    owner = numbers[row, column]
    order = np.argsort(owner, kind="stable")  # the pixels region by region
    row, column, value = row[order], column[order], anomaly_map[marked][order]
    first = np.searchsorted(owner[order], np.arange(1, found["region_count"] + 1))
    peak, count = np.maximum.reduceat(value, first), np.diff(np.append(first, len(owner)))
    top, height = _in_image(row, first, marked.shape[0], shape[0])
    left, width = _in_image(column, first, marked.shape[1], shape[1])
    share = count / marked.size
    found["regions"] = [
        {
            **{"x": int(left[i]), "y": int(top[i]), "width": int(width[i]), "height": int(height[i])},
            **{"area": max(1, round(share[i] * shape[0] * shape[1])), "share": _rounded(share[i])},
            "peak": _rounded(peak[i]),
        }
        for i in np.lexsort((left, top, -peak))[:_LISTED]
    ]
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _starts_in(canvas: int, image: int) -> NDArray[np.int64]:
    """Return the canvas row (or column) at which each row (or column) of the image begins."""
    return np.arange(image) * canvas // image


def _in_image(
    places: NDArray[np.int64], first: NDArray[np.int64], canvas: int, image: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return begin and length in the image of each region's canvas rows or columns, `first` where its own begin."""
    starts = _starts_in(canvas, image)
    low, high = np.minimum.reduceat(places, first), np.maximum.reduceat(places, first)
    begin = np.searchsorted(starts, starts[np.searchsorted(starts, low, "right") - 1])
    return begin, np.searchsorted(starts, high + 1) - begin


def on_image(mask: Mask, shape: tuple[int, int]) -> Mask:
    """Return a mask of the canvas (H, W) in pixels of the image, `shape` (H0, W0); a pixel that any part marks is True.

    The box of a region is that which `marks` gives.
    """
    for axis in (0, 1):
        mask = np.logical_or.reduceat(mask, _starts_in(mask.shape[axis], shape[axis]), axis=axis)
    return mask
