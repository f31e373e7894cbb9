"""Read and write image files within limits; `decoding` says what their bytes mean. H0 W0 pixels of the file."""

import os
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvqae.core.errors import DataError
from pvqae.core.files import open_regular, resolve
from pvqae.samples import decoding
from pvqae.samples.decoding import Bits, Floats, Header, Mask, UnusableError

__all__ = ["SUFFIXES", "Bits", "Floats", "Header", "Mask", "decode", "header", "marked", "read", "read_mask", "write"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
SIDES = (8, 65535)  # pixels, the shortest and the longest side that an image may have
_ROWS = 256  # of an image, rounded at once
T = TypeVar("T")


def _guarded(path: Path, root: Path | None, work: Callable[[Image.Image], T]) -> T:
    """Run `work` on the opened image; whatever is wrong with the file becomes a `DataError` that names it."""
    file = path if root is None else resolve(root, path.as_posix())
    try:
        with open_regular(file) as stream:
            return decoding.opened(stream, os.fstat(stream.fileno()).st_size, work)
    except UnusableError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        repair = "correct the path or restore it" if root is None else "restore it or build the manifest again"
        raise DataError(f"{path}: expected an image, found no file; {repair}") from None
    except (OSError, ValueError) as error:
        found = decoding.reason(error)
        raise DataError(f"{path}: expected a readable file, found: {found}; make it one, or remove it") from None


def _decoded(image: Image.Image, bits: Bits) -> tuple[Floats, Header]:
    header = decoding.header(image, bits)  # first, as for a file: decoding may find more of it
    return decoding.pixels(image, bits), header


def header(path: Path | str, root: Path | None = None, bits: Bits = "auto") -> Header:
    """Return size, channels, bit depth and capture time without decoding the pixels. Raises as `read`."""
    return _guarded(Path(path), root, partial(decoding.header, bits=bits))


def read(path: Path | str, root: Path | None = None, bits: Bits = "auto") -> Floats:
    """Return the image as (H0, W0, 3) in [0, 1], as `decoding.pixels` says; `bits` is the setting `image.bits`.

    With `root`, `path` is relative to it and may not leave it, not even through a link. Raises `DataError`, naming
    the file, for a missing, unreadable, truncated, animated or too large image.
    """
    return _guarded(Path(path), root, partial(decoding.pixels, bits=bits))


def decode(data: bytes, name: str, bits: Bits = "auto") -> tuple[Floats, Header]:
    """Return what `read` and `header` do of an image that is not in a file, within the same limits; errors call it
    `name`.
    """
    try:
        return decoding.opened(BytesIO(data), len(data), partial(_decoded, bits=bits))
    except UnusableError as error:
        raise DataError(f"{name}: {error}") from None


def marked(path: Path | str, root: Path | None = None) -> tuple[Mask, str]:
    """Return what a mask marks as (H0, W0), and the values in it, in words, as `decoding.labels` says. Raises as
    `read`.
    """
    return _guarded(Path(path), root, decoding.labels)


def read_mask(path: Path | str, root: Path | None = None) -> Mask:
    """Return a mask as (H0, W0): True where its label is not the background's. Raises as `read`."""
    return marked(path, root)[0]


def write(path: Path, image: NDArray[np.float32] | Mask, channels: int = 3, bit_depth: int = 8) -> None:
    """Write pixels in [0, 1], (H0, W0, 3) or (H0, W0), as a PNG; more than 8 bit is for grey only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[..., 0] if channels == 1 and image.ndim == 3 else image
    kind, bits = (np.uint16, bit_depth) if bit_depth > 8 and channels == 1 else (np.uint8, 8)
    scaled = np.empty(pixels.shape, kind)
    for start in range(0, len(pixels), _ROWS):  # in float64, which a whole line scan would fill memory with
        rows = slice(start, start + _ROWS)
        scaled[rows] = np.rint(np.clip(pixels[rows].astype(np.float64), 0, 1) * (2**bits - 1))
    Image.fromarray(scaled).save(path, format="PNG")
