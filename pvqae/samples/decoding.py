"""Say what pixels the bytes of an image hold, or why they hold none: the one place with these rules.

Needs numpy and Pillow alone, so that this file can be shipped with an exported detector. H0 W0 pixels of the file.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Bits = int | Literal["auto"]  # of samples in 16 bit files: `image.bits`
T = TypeVar("T")

# Raster formats only: Pillow would hand PostScript to another program.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
_LOSSY = ("JPEG", "MPO", "WEBP")
_MAX_BYTES = 256 * 2**20
_MAX_PIXELS = 80_000_000  # below the 89 million at which Pillow itself starts to warn
_DEEP = ("I;16", "I;16L", "I;16B", "I")  # Pillow's modes of 16 bit grey
_GREY = ("1", "L", "LA", "La", *_DEEP)
# A mask of more values is no list of labels: edges are soft, or compression left noise (in MTSD's, 6 to 232 values).
_LABELS = 4
# Of the highest value: what is above it is marked in such a mask. JPEG writes up to a fifth next to a step.
SOFT, LOSSY_SOFT = 0.5, 0.25

_CUT = "cut it into parts"
_RESTORE = "restore it from its source, or remove it"
_CONVERT = "save it as a PNG of 8 or 16 bit, or remove it"


class UnusableError(ValueError):
    """A file that gives no pixels: what was expected, what was found, and the repair."""


@dataclass(frozen=True)
class Header:
    """What a file says about its picture, orientation applied."""

    width: int
    height: int
    channels: int  # 1 grey or 3 colour, as decoded: alpha is composited away, a palette is looked up
    bit_depth: int  # 8, or of 16 bit files their range; as decoded: Pillow gives 16 bit for grey only
    captured_at: str  # the camera's own note, ISO 8601 without zone, or ""


def opened(stream: BinaryIO, size: int, work: Callable[[Image.Image], T]) -> T:
    """Run `work` on the image in `stream`, `size` bytes of it. Raises `UnusableError` for whatever is wrong with it."""
    if size > _MAX_BYTES:
        raise UnusableError(f"expected at most {_MAX_BYTES} bytes, found {size}; {_CUT}, or save it with compression")
    if size == 0:
        raise UnusableError(f"expected an image, found an empty file; {_RESTORE}")
    try:
        tags = _tags(stream)
        _check_tiff(tags)
        with Image.open(stream, formats=_FORMATS) as image:
            _check(image)
            return work(image)
    except UnusableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        raise _too_large(f"{found[0]} pixels" if found else "more") from None
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            what = f"a TIFF of {_described(tags)}" if tags else f"none of the formats {', '.join(_FORMATS)}"
            raise UnusableError(f"expected a readable image, found {what}; {_CONVERT}") from None
        raise UnusableError(f"expected a readable image, found {reason(error)}; {_RESTORE}") from None


def reason(error: Exception) -> str:
    """Return what is wrong without the absolute path of some messages: the quarantine list is the same on every
    machine.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def _too_large(found: str) -> UnusableError:
    return UnusableError(f"expected at most {_MAX_PIXELS} pixels, found {found}; {_CUT}")


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > _MAX_PIXELS:
        raise _too_large(f"{width} x {height}")
    # An MPO is a phone's JPEG with a preview behind it: its first frame is the picture.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        repair = "save the picture that shows the part as a file of its own"
        raise UnusableError(f"expected one picture, found an animation or several pages; {repair}")


# TIFF: what Pillow would read as another picture, and what it can't read, is refused by name.
_PHOTOMETRIC = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK"}
_PHOTOMETRIC |= {
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "a colour filter array",
    34892: "linear raw",
}
_SAMPLES = {1: "unsigned", 2: "signed", 3: "floating point", 4: "undefined", 5: "complex", 6: "complex"}
_JPEG = 7
_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", _JPEG: "JPEG", 8: "Deflate"}
_COMPRESSIONS |= {32946: "Deflate", 32773: "PackBits"}
_DEPTHS = {0: (1, 2, 4, 8, 16), 1: (1, 2, 4, 8, 12, 16), 2: (8, 16), 3: (1, 2, 4, 8), 5: (8, 16), 6: (8,)}
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # samples that are not extra


@dataclass(frozen=True)
class _Tiff:
    """The tags of a TIFF's first page that decide what its numbers mean."""

    order: str  # II or MM
    photometric: int | None
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    compression: int
    samples: int
    planar: int
    predictor: int
    extra: tuple[int, ...]


def _tags(stream: BinaryIO) -> _Tiff | None:
    """Return the tags that decide what the numbers of a TIFF mean, None for what is no TIFF. Raises what Pillow's
    parser does.
    """
    head = stream.read(16)
    try:
        if head[:4] not in TiffImagePlugin.PREFIXES:
            return None
        if head[:4] == b"MM\0\x2b":
            raise UnusableError(f"expected a classic TIFF, found a big-endian BigTIFF; {_CONVERT}")
        found = TiffImagePlugin.ImageFileDirectory_v2(head if head[2] == 43 else head[:8])
        stream.seek(found.next)
        found.load(stream)
        return _tiff(head[:2].decode(), found)
    finally:
        stream.seek(0)


def _tiff(order: str, found: Any) -> _Tiff:
    def many(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        value = found.get(tag, default)
        return tuple(map(int, value if isinstance(value, tuple) else (value,)))

    def one(tag: int, default: int) -> int:
        return many(tag, (default,))[0]

    photometric = one(262, -1)
    return _Tiff(
        order,
        None if photometric < 0 else photometric,
        many(258, (1,)),
        many(339, (1,)),
        one(259, 1),
        one(277, 1),
        one(284, 1),
        one(317, 1),
        many(338, ()),
    )


def _described(tiff: _Tiff) -> str:
    kind = _PHOTOMETRIC.get(tiff.photometric or 0, f"photometric interpretation {tiff.photometric}")
    format_ = "/".join(dict.fromkeys(_SAMPLES.get(number, str(number)) for number in tiff.formats))
    planes = ", in planes" if tiff.planar == 2 and tiff.samples > 1 else ""
    compression = _COMPRESSIONS.get(tiff.compression, f"number {tiff.compression}")
    return (
        f"{tiff.samples} {format_} samples of {'/'.join(map(str, dict.fromkeys(tiff.bits)))} bit, {kind}{planes}, "
        f"{'big' if tiff.order == 'MM' else 'little'}-endian, compression {compression}"
    )


def _check_tiff(tiff: _Tiff | None) -> None:
    """Raise `UnusableError` for what Pillow would take for another picture."""
    if tiff is None:
        return
    kind, bits = tiff.photometric, tiff.bits[0]
    # Each pair: whether the file is so, and what was expected instead.
    flaws = {
        "a photometric interpretation": kind is None,
        f"compression {', '.join(dict.fromkeys(_COMPRESSIONS.values()))}": tiff.compression not in _COMPRESSIONS,
        "grey, RGB, CMYK or a palette": kind not in _DEPTHS,
        "unsigned whole numbers": set(tiff.formats) != {1},
        f"{', '.join(map(str, _DEPTHS.get(kind or 0, ())))} bit": bits not in _DEPTHS.get(kind or 0, ()),
        "the same bits in every sample": len(set(tiff.bits)) > 1,
        "YCbCr with compression JPEG": kind == 6 and tiff.compression != _JPEG,
        "CMYK without compression JPEG": kind == 5 and tiff.compression == _JPEG,
        "a predictor of whole numbers, with compression": tiff.predictor not in _predictors(tiff.compression),
        "one more sample at most": tiff.samples > _COLOURS.get(kind or 0, 1) + 1,
        "interleaved samples": tiff.planar == 2
        and tiff.samples > 1
        and (bits != 8 or kind not in (2, 5) or 1 in tiff.extra),
    }
    if wrong := [expected for expected, found in flaws.items() if found]:
        raise UnusableError(f"expected {wrong[0]}, found a TIFF of {_described(tiff)}; {_CONVERT}")


def _predictors(compression: int) -> tuple[int, ...]:
    return (1, 2) if compression in (5, 8, 32946) else (1,)


def _white_is_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def header(image: Image.Image, bits: Bits = "auto") -> Header:
    """Return the header of an opened image, nothing decoded."""
    exif = image.getexif()
    # Pillow has turned the size of a TIFF already.
    turned = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    taken = str(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal, ""))
    date = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", taken)
    captured = "{}-{}-{}T{}".format(*date.groups()) if date else ""
    depth = (16 if bits == "auto" else bits) if image.mode in _DEEP else 8
    return Header(width, height, 1 if image.mode in _GREY else 3, depth, captured)


def pixels(image: Image.Image, bits: Bits = "auto") -> Floats:
    """Return (H0, W0, 3) in [0, 1] of an opened image: orientation applied, alpha on white, grey repeated.

    Samples of 16 bit files reach up to 65535, or 2^bits - 1; those of files that state their own range are scaled by
    that. An alpha that is the same everywhere says nothing and is left out: frame grabbers write 0 there.
    """
    _refuse_deep_colour(image, bits)
    _load(image)
    if image.mode in _DEEP:
        values, top = _deep(image, bits)
        scaled = np.divide(values, np.float32(top), dtype=np.float32)  # as rounded from float64: both are exact
        return np.repeat(scaled[..., None], 3, axis=2)
    opaque = _without_alpha(image)
    rgb = opaque if opaque.mode == "RGB" else opaque.convert("RGB")
    shares: Floats = np.divide(np.asarray(rgb), np.float32(255), dtype=np.float32)
    return shares


def _load(image: Image.Image) -> None:
    _check_sums(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # else a copy, turned or not


def _check_sums(image: Image.Image) -> None:
    """Check the sums of a PNG's chunks, which Pillow skips while decoding: a flipped byte would be another picture."""
    if not isinstance(image, PngImageFile) or image.fp is None:
        return
    place = image.fp.tell()
    try:
        with Image.open(image.fp, formats=("PNG",)) as again:
            again.verify()
    except Exception as error:
        raise ValueError(f"truncated or damaged: {error}") from None
    image.fp.seek(place)


def _refuse_deep_colour(image: Image.Image, bits: Bits) -> None:
    """Refuse 16 bit colour of fewer bits: Pillow keeps its upper 8 bits, which have next to nothing."""
    if bits in ("auto", 16) or image.mode in _DEEP or not any(";16" in str(tile[3]) for tile in image.tile):  # type: ignore[attr-defined]
        return
    raise UnusableError(
        f"expected grey for image.bits {bits}, found 16 bit colour; save it with 8 bits per channel, or as 16 bit grey"
    )


def _deep(image: Image.Image, bits: Bits) -> tuple[NDArray[Any], int]:
    """Return the samples of a 16 bit image, and the value that is white. PNG's sBIT and TIFF's MaxSampleValue don't
    tell it: by their standards samples are scaled to 16 bit all the same.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UnusableError(f"expected values of 0 to 65535, found {low} to {high}; {_CONVERT}")
    if image.format == "PPM":  # scaled by its own maximum
        return values, 65535
    if image.format == "TIFF" and image.tag_v2.get(258) in (12, (12,)):  # type: ignore[attr-defined]
        return values, 4095
    top = 65535 if bits == "auto" else 2**bits - 1
    if high > top:
        more = f"set image.bits to {high.bit_length()} or more if the camera has them, or {_RESTORE}"
        raise UnusableError(f"expected values up to {top} (image.bits {bits}), found {high}; {more}")
    return (top - values if _white_is_zero(image) else values), top


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return the image as RGBA if its alpha tells pixels apart."""
    if not image.has_transparency_data:
        return None
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    low, high = layer.getchannel("A").getextrema()
    if low == high == 0 and image.format == "TIFF" and image.tag_v2.get(338) in (1, (1,)):  # type: ignore[attr-defined]
        raise UnusableError("expected a picture, found alpha 0 everywhere multiplied into it; save it without alpha")
    return layer if low != high else None


def _without_alpha(image: Image.Image) -> Image.Image:
    layer = _alpha(image)
    if layer is None:
        return _dropped(image)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _dropped(image: Image.Image) -> Image.Image:
    """Return the colours alone."""
    image.info.pop("transparency", None)
    return image.convert("RGB") if image.has_transparency_data else image


def labels(image: Image.Image) -> tuple[Mask, str]:
    """Return what an opened mask marks as (H0, W0), and the values seen, in words: any label but the background's is a
    defect.

    The background is 0, black, or transparent; of a palette the index 0, or the black one where 0 is not black. With
    more than `_LABELS` values, those below half of the highest (a quarter in lossy formats) are edges or noise, unless
    most of their pixels are in even areas.
    """
    _load(image)
    layer = _alpha(image)
    if layer is None and image.mode == "P":
        return _of_palette(image)
    if layer is not None:
        values = _of_layer(np.asarray(layer))
    elif image.mode in _DEEP:
        values = _deep(image, "auto")[0]
    else:
        values = np.asarray(_dropped(image).convert("RGB")).max(axis=2)
    share = LOSSY_SOFT if image.format in _LOSSY else SOFT
    return _marked(values, share), f"values {values.min()} to {values.max()}"


def _marked(values: NDArray[Any], share: float) -> Mask:
    counts = np.bincount(values.ravel())
    if np.count_nonzero(counts[1:]) <= _LABELS:
        return values > 0
    across, down = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    three = across[:, 1:] & across[:, :-1]
    square = three[:-2] & three[1:-1] & three[2:] & down[1:, 1:-1] & down[:-1, 1:-1]  # 3 x 3 equal values
    even = np.zeros_like(values, dtype=np.bool_)
    for row, column in np.ndindex(3, 3):
        even[row : row + len(square), column : column + square.shape[1]] |= square
    solid = 2 * np.bincount(values[even], minlength=len(counts)) >= counts
    label = (np.arange(len(counts)) > share * (len(counts) - 1)) | solid
    label[0] = False
    marked: Mask = label[values]
    return marked


def _of_layer(rgba: NDArray[Any]) -> NDArray[Any]:
    """Return values of a mask whose alpha tells pixels apart: what is transparent is background."""
    alpha, colour = rgba[..., 3], rgba[..., :3].max(axis=2)
    shown, coloured = alpha > 0, colour > 0
    if not coloured[shown].any():  # black on transparent ground
        return alpha
    if not shown.all() and not coloured[shown].all():
        raise UnusableError(
            "expected a mask with one background, found transparent, black and coloured pixels; save it as grey "
            "without alpha: 0 where there is no defect, any other value where there is one"
        )
    return np.where(shown, colour, 0)


def _of_palette(image: Image.Image) -> tuple[Mask, str]:
    indices, used = np.asarray(image), np.unique(np.asarray(image))
    colours = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    black = [int(index) for index in (0, *used) if index < len(colours) and not colours[index].any()]
    background = black[0] if black else 0
    return indices != background, f"indices {used.min()} to {used.max()}, {background} the background"
