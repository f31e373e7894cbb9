"""Arrays to small pictures: one colour scale for all images, fixed by the calibration and never by the image itself.

A scale per image paints the most ordinary spot of a good part red; people then stop trusting the map.
Legend: H W pixels of the picture, h w cells of the coarsest grid.
"""

from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Colours = tuple[tuple[int, int, int], ...]
Value = TypeVar("Value", np.float32, np.bool_)

_SIDE = 256  # longest side of a picture in the report, pixels
_OBLONG = 3  # of more than so many squares in a row the short side is kept, up to four times the longest

# Anchors at equal steps of maps whose lightness rises evenly: dark is ordinary, light is far from it.
HEAT: Colours = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
    (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
)  # fmt: skip
LEVELS: Colours = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_PADDING = (128, 128, 128)
_OUTLINE = (255, 225, 0)


def colours(values: Floats, anchors: Colours = HEAT) -> Bytes:
    """Return colours (..., 3) of values in [0, 1], interpolated between anchors; values outside take the end colour."""
    steps = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, steps, channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def level_colours(levels: int) -> Bytes:
    """Return colours (levels, 3), dark for the coarsest, light for the finest."""
    return colours(np.linspace(0, 1, levels) if levels > 1 else np.zeros(1), LEVELS)


def thumbnail(picture: Bytes, side: int = _SIDE) -> Bytes:
    """Shrink a picture (H, W, 3) so that its longest side is at most `side`; never enlarge it.

    An oblong one, such as a line scan, may be longer while its short side is below a third of `side`.
    """
    height, width = _fit(picture.shape[:2], side)
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def shrink(values: NDArray[Value], side: int = _SIDE) -> NDArray[Value]:
    """Shrink (H, W) values like `thumbnail`, each block to its maximum, so that a small hot spot or mask survives."""
    height, width = _fit(values.shape, side)
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    blocks = np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1)
    return np.asarray(blocks, dtype=values.dtype)


def heatmap(picture: Bytes, anomaly_map: Floats, scale: tuple[float, float], threshold: float) -> Bytes:
    """Draw the map in colour over the grey picture, both (H, W); `scale` is (low, high) of the calibration.

    Where it exceeds the map's threshold it is outlined.
    """
    low, high = scale
    share = np.clip((anomaly_map - low) / max(high - low, 1e-12), 0, 1)
    grey = picture.mean(axis=-1, keepdims=True)
    mixed = (0.7 * colours(share) + 0.3 * grey).round().astype(np.uint8)
    return outline(mixed, anomaly_map > threshold, colour=(255, 255, 255))


def over(picture: Bytes, anomaly_map: NDArray[np.float32], card: dict[str, Any]) -> Bytes:
    """Draw a map over the picture that the model saw, (H, W, 3), small, on the card's scale, its marks outlined."""
    low, high = card["map_scale"]
    return heatmap(thumbnail(picture), shrink(anomaly_map), (low, high), outlined_above(card))


def outlined_above(card: dict[str, Any]) -> float:
    """Return the pixel threshold of a calibration card; older ones have only that of a map's highest value."""
    return float(card["pixel"]["threshold"] if card.get("pixel") else card["map_threshold"])


def outline(picture: Bytes, mask: Bools, colour: tuple[int, int, int] = _OUTLINE) -> Bytes:
    """Draw a line around the mask on the (H, W, 3) picture: outside it, so that the defect stays visible.

    A dark rim outside the bright line makes it readable on light surfaces.
    """
    drawn = picture.copy()
    near = binary_dilation(mask, iterations=1)
    far = binary_dilation(near, iterations=1)
    drawn[far & ~near] = 0
    drawn[near & ~mask] = colour
    return drawn


def level_map(cells: NDArray[np.integer], levels: int, shape: tuple[int, int]) -> Bytes:
    """Draw (h, w) levels, 0 coarsest, as flat squares of a picture `shape` (H, W).

    -1 is padding: whole rows and columns of it are dropped, as the picture has none; the rest is grey.
    """
    real = cells >= 0
    if real.any():
        cells = cells[real.any(axis=1)][:, real.any(axis=0)]
    palette = np.vstack([level_colours(levels), np.array(_PADDING, dtype=np.uint8)])  # index -1 is the last row
    squares = Image.fromarray(palette[cells])
    return np.asarray(squares.resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def webp(picture: Bytes) -> bytes:
    """Encode a photograph or heatmap: about 10 kB at 256 px."""
    return _encode(picture, "WEBP", quality=82, method=4)


def png(picture: Bytes) -> bytes:
    """Encode flat colours: exact and under 2 kB."""
    return _encode(picture, "PNG", optimize=True)


def _encode(picture: Bytes, form: str, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


def _fit(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    height, width = shape[0], shape[1]
    longest = side * float(np.clip(max(height, width) / min(height, width) / _OBLONG, 1, 4))
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
