"""Decode images with limits. H0 W0 pixels of the file."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from pvqae.errors import DataError
from pvqae.files import open_regular, resolve

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Raster formats only: Pillow would hand PostScript to another program.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
SIDES = (8, 65535)  # pixels, the shortest and the longest side that an image may have
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # below the 89 million at which Pillow itself starts to warn
DEEP = ("I;16", "I;16L", "I;16B", "I")  # Pillow's modes of 16 bit grey
T = TypeVar("T")
REPAIR = "export it again as an 8 or 16 bit PNG, or remove it"


@dataclass(frozen=True)
class Header:
    """What a file says about its picture, orientation applied."""

    width: int
    height: int
    channels: int  # 1 grey or 3 colour, as decoded: alpha is composited away, a palette is looked up
    bit_depth: int  # 8 or 16 as decoded: Pillow gives 16 bit for grey only
    captured_at: str  # the camera's own note, ISO 8601 without zone, or ""


def _check(path: Path | str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: expected at most {MAX_PIXELS} pixels, found {width} x {height}; {REPAIR}")
    # An MPO is a phone's JPEG with a preview behind it: its first frame is the picture.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path}: expected one picture, found an animation or several pages; {REPAIR}")
    if image.mode == "F":
        raise DataError(f"{path}: expected 8 or 16 bit, found floating point pixels; {REPAIR}")


def _reason(error: Exception) -> str:
    """Without the absolute path that some messages carry: the quarantine list must be the same on every machine."""
    if isinstance(error, UnidentifiedImageError):
        return f"none of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def _guarded(path: Path, root: Path | None, work: Callable[[Image.Image], T]) -> T:
    """Run `work` on the opened image; whatever is wrong with the file becomes a `DataError` that names it."""
    file = path if root is None else resolve(root, path.as_posix())
    try:
        with open_regular(file) as stream:
            return _opened(path, stream, os.fstat(stream.fileno()).st_size, work)
    except FileNotFoundError:
        raise DataError(f"{path}: expected an image, found no file; restore it or build the manifest again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a readable image, found {_reason(error)}; {REPAIR}") from None


def _opened(name: Path | str, stream: BinaryIO, size: int, work: Callable[[Image.Image], T]) -> T:
    """Run `work` on the image in `stream`, `size` bytes of it; errors call it `name`."""
    try:
        if size > MAX_BYTES:
            raise DataError(f"{name}: expected at most {MAX_BYTES} bytes, found {size}; {REPAIR}")
        with Image.open(stream, formats=FORMATS) as image:
            _check(name, image)
            return work(image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: expected a readable image, found {_reason(error)}; {REPAIR}") from None


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", *DEEP)


def _header(image: Image.Image) -> Header:
    exif = image.getexif()
    turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    taken = str(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal, ""))
    date = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", taken)
    captured = "{}-{}-{}T{}".format(*date.groups()) if date else ""
    return Header(width, height, 1 if _is_grey(image) else 3, 16 if image.mode in DEEP else 8, captured)


def _without_alpha(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _check_sums(image: Image.Image) -> None:
    """A PNG's chunks carry checksums that Pillow skips while it decodes: a flipped byte would be another picture."""
    if not isinstance(image, PngImageFile) or image.fp is None:
        return
    place = image.fp.tell()
    try:
        with Image.open(image.fp, formats=("PNG",)) as again:
            again.verify()
    except Exception as error:
        raise ValueError(f"truncated or damaged: {error}") from None
    image.fp.seek(place)


def _pixels(image: Image.Image) -> Floats:
    _check_sums(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # else a copy, turned or not
    if image.mode in DEEP:
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"32 bit pixels of {deep.min()} to {deep.max()}")
        scaled = (deep.astype(np.float64) / 65535).astype(np.float32)
        return np.repeat(scaled[..., None], 3, axis=2)
    opaque = _without_alpha(image)
    rgb = opaque if opaque.mode == "RGB" else opaque.convert("RGB")
    shares: Floats = np.divide(np.asarray(rgb), np.float32(255), dtype=np.float32)
    return shares


def _decoded(image: Image.Image) -> tuple[Floats, Header]:
    header = _header(image)  # first, as for a file: decoding may find more of it
    return _pixels(image), header


def header(path: Path | str, root: Path | None = None) -> Header:
    """Size, channels, bit depth and capture time without decoding the pixels. Raises as `read`."""
    return _guarded(Path(path), root, _header)


def read(path: Path | str, root: Path | None = None) -> Floats:
    """The image as (H0, W0, 3) in [0, 1]; grey is repeated, alpha composited on white, orientation applied.

    With `root`, `path` is relative to it and may not leave it, not even through a link. Raises `DataError`, naming
    the file, for a missing, unreadable, truncated, animated or too large image.
    """
    return _guarded(Path(path), root, _pixels)


def decode(data: bytes, name: str) -> tuple[Floats, Header]:
    """`read` and `header` of an image that is not in a file, within the same limits; errors call it `name`."""
    return _opened(name, BytesIO(data), len(data), _decoded)


def read_mask(path: Path | str, root: Path | None = None) -> Mask:
    """A mask as (H0, W0): True where any channel is above half of the range. Raises as `read`."""
    above: Mask = read(path, root).max(axis=2) > 0.5
    return above


def write(path: Path, image: NDArray[np.float32] | Mask, channels: int = 3, bit_depth: int = 8) -> None:
    """Write pixels in [0, 1], (H0, W0, 3) or (H0, W0), as a PNG; 16 bit is for grey only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[..., 0] if channels == 1 and image.ndim == 3 else image
    kind, top = (np.uint16, 65535) if bit_depth == 16 and channels == 1 else (np.uint8, 255)
    scaled = np.rint(np.clip(pixels.astype(np.float64), 0, 1) * top)
    Image.fromarray(scaled.astype(kind)).save(path, format="PNG")
