"""TIFF: what is read is what tifffile reads, over the grid of its tags; all else is refused by name."""

import io
import struct
from itertools import product
from typing import Any

import numpy as np
import pytest
import tifffile

from pvqae.core.errors import DataError
from pvqae.samples import images

SHAPE = (19, 34)  # no multiple of a tile's 16
TOLERANCE = 0.012  # 16 bit colour is read with 8; CMYK in whole steps
COLOURS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "palette": 1, "separated": 4}
EXTRA = (None, "unspecified", "unassalpha", "assocalpha")
RNG = np.random.default_rng(0)


def samples(kind: str, bits: int, extra: str | None) -> np.ndarray:
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32 if bits == 32 else np.uint64
    found = RNG.integers(0, 2**bits, (*SHAPE, COLOURS[kind] + (extra is not None)), dtype=dtype)
    if extra == "assocalpha":
        found[..., :-1] = np.minimum(found[..., :-1], found[..., -1:])
    return found


def shown(found: np.ndarray, kind: str, bits: int, extra: str | None, colours: np.ndarray) -> np.ndarray:
    """The picture that the samples mean, H0 x W0 x 3."""
    if kind == "palette":
        return colours.T[found[..., 0]] / 65535
    shares, n = found / (2.0**bits - 1), COLOURS[kind]
    own, alpha = shares[..., :n], shares[..., n:]
    if kind == "miniswhite":
        own = 1 - own
    if kind == "separated":
        own = (1 - own[..., :3]) * (1 - own[..., 3:])
    own = np.broadcast_to(own, (*SHAPE, 3))
    if extra == "unassalpha":
        return own * alpha + 1 - alpha
    return np.clip(own + 1 - alpha, 0, 1) if extra == "assocalpha" else own


def written(found: np.ndarray, planar: str, colours: np.ndarray, **options: Any) -> bytes | None:
    """None for what tifffile doesn't write either."""
    many = found.shape[-1] > 1
    stored = found if many and planar == "contig" else np.moveaxis(found, -1, 0) if many else found[..., 0]
    if options["bitspersample"] in (8, 16, 32, 64):
        options["bitspersample"] = None
    if options["photometric"] == "palette":
        options["colormap"] = colours
    elif options["bitspersample"] == 1:
        stored = stored.astype(bool)
    file, big = io.BytesIO(), options.pop("bigtiff")
    try:
        with tifffile.TiffWriter(file, bigtiff=big, byteorder=options.pop("byteorder")) as tiff:
            tiff.write(stored, planarconfig=planar if many else None, **options)
    except ValueError:
        return None
    return file.getvalue()


def decoded(data: bytes) -> tuple[images.Floats | None, images.Header | None, str]:
    """Pixels and header, or the refusal."""
    try:
        return *images.decode(data, "a.tif"), ""
    except DataError as error:
        return None, None, str(error)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32, 64])
@pytest.mark.parametrize("kind", COLOURS)
def test_every_tiff_is_read_as_tifffile_reads_it_or_refused(kind: str, bits: int, order: str) -> None:
    colours, read, wrong = RNG.integers(0, 65536, (3, 2 ** min(bits, 8)), dtype=np.uint16), 0, []
    compressions = (None, "lzw", "zlib", "packbits", "lzma")
    for compression, planar, extra, tile, predictor, big in product(
        compressions, ("contig", "separate"), EXTRA, (None, (16, 16)), (False, True), (False, True)
    ):
        if (predictor and compression not in ("lzw", "zlib")) or (kind == "palette" and (extra or bits > 8)):
            continue
        options = {"photometric": kind, "bitspersample": bits, "byteorder": order, "compression": compression}
        options |= {"extrasamples": [extra] if extra else None, "tile": tile, "predictor": predictor, "bigtiff": big}
        found = samples(kind, bits, extra)
        data = written(found, planar, colours, **options)
        if data is None:
            continue
        pixels, header, refusal = decoded(data)
        if pixels is None or header is None:
            assert "found a TIFF of" in refusal or "BigTIFF" in refusal, refusal
            continue
        read += 1
        expected = shown(found, kind, bits, extra, colours)
        assert (header.height, header.width) == pixels.shape[:2] == SHAPE
        if np.abs(pixels - expected).max() > TOLERANCE:
            wrong.append((compression, planar, extra, tile, predictor, big))
    assert wrong == []
    common = {"minisblack": (8, 16), "miniswhite": (8,), "rgb": (8, 16), "palette": (8,), "separated": (8, 16)}
    assert read > 10 or bits not in common[kind]


def tags(**values: int) -> list[tuple[int, int]]:
    """Of an uncompressed grey page of `SHAPE`, in one strip behind them."""
    known = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "order": 266}
    known |= {"offset": 273, "samples": 277, "rows": 278, "bytes": 279, "predictor": 317, "format": 339}
    height, width = SHAPE
    own = {"width": width, "height": height, "compression": 1, "photometric": 1, "samples": 1, "rows": height} | values
    return sorted((known[name], value) for name, value in own.items() if value >= 0)


def by_hand(data: bytes, order: str = "<", **values: int) -> bytes:
    own = tags(offset=0, bytes=len(data), **values)
    start = 8 + 2 + 12 * len(own) + 4
    entries = [(tag, start if tag == 273 else value) for tag, value in own]
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    body = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    return head + struct.pack(f"{order}H", len(own)) + body + struct.pack(f"{order}I", 0) + data


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of `bits` bit samples, most significant first, each row padded to a byte."""
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_twelve_bit_reaches_white(order: str) -> None:
    values = RNG.integers(0, 4096, SHAPE)
    values[0, 0] = 4095
    data = by_hand(packed(values, 12), order, bits=12)
    pixels, header, refusal = decoded(data)
    if pixels is None or header is None:
        assert "12 bit" in refusal
        return
    np.testing.assert_allclose(pixels[..., 0], values / 4095, atol=1e-6)
    assert header.bit_depth == 16
    for bits in (10, 12, 16):  # the file's own range, whatever the setting
        np.testing.assert_array_equal(images.decode(data, "a.tif", bits)[0], pixels)


@pytest.mark.parametrize("bits", [10, 14, 24])
def test_other_packed_samples_are_refused_by_their_bits(bits: int) -> None:
    with pytest.raises(DataError, match=rf"expected 1, 2, 4, 8, 12, 16 bit, found a TIFF .* {bits} bit"):
        images.decode(by_hand(packed(np.full(SHAPE, 1000), bits), bits=bits), "a.tif")


@pytest.mark.parametrize("bits", ["auto", 12, 16])
def test_white_is_zero_in_sixteen_bit(bits: int | str) -> None:
    top = 4095 if bits == 12 else 65535
    values = RNG.integers(0, top + 1, SHAPE).astype("<u2")
    pixels, _ = images.decode(by_hand(values.tobytes(), bits=16, photometric=0), "a.tif", bits)
    np.testing.assert_allclose(pixels[..., 0], 1 - values / top, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"format": 2}, "signed"),
        ({"format": 3, "bits": 32}, "floating point"),
        ({"photometric": 32803}, "colour filter array"),
        ({"photometric": 8}, "CIELab"),
        ({"photometric": 6}, "YCbCr"),
        ({"photometric": -1}, "a photometric interpretation"),
        ({"compression": 34712}, "number 34712"),
        ({"predictor": 2}, "a predictor"),
        ({"bits": 32}, "32 bit"),
    ],
)
def test_what_would_be_another_picture_is_refused_by_name(values: dict[str, int], named: str) -> None:
    data = bytes(SHAPE[0] * SHAPE[1] * 8)
    with pytest.raises(DataError, match=rf"a\.tif: expected .*{named}.*; save it as a PNG"):
        images.decode(by_hand(data, **{"bits": 8, **values}), "a.tif")


TURNED = {
    **{1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]},
    **{5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1)},
    **{7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a, 1)},
}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_is_applied_once(orientation: int, dtype: str, compression: str | None) -> None:
    values, file = RNG.integers(0, 256, SHAPE).astype(dtype), io.BytesIO()
    turn = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(file, values, photometric="minisblack", compression=compression, extratags=turn)
    pixels, header = images.decode(file.getvalue(), "a.tif")
    expected = TURNED[orientation](values) / np.iinfo(dtype).max
    np.testing.assert_allclose(pixels[..., 0], expected, atol=1e-6)
    assert (header.height, header.width) == expected.shape


@pytest.mark.parametrize("kind", ["minisblack", "rgb", "ycbcr"])
def test_jpeg_inside_a_tiff(kind: str) -> None:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    soft = np.dstack([5 * rows, 5 * columns, 255 - 3 * rows]).astype(np.uint8)
    file = io.BytesIO()
    values, photometric = (soft[..., 0], kind) if kind == "minisblack" else (soft, "rgb")
    tifffile.imwrite(file, values, photometric=photometric, compression="jpeg")
    oracle = tifffile.imread(io.BytesIO(file.getvalue())) / 255
    pixels, _ = images.decode(file.getvalue(), "a.tif")
    np.testing.assert_allclose(pixels if kind != "minisblack" else pixels[..., 0], oracle, atol=0.01)


def test_alpha_of_zero_that_was_multiplied_in_is_refused() -> None:
    file, values = io.BytesIO(), samples("rgb", 8, "unassalpha")
    values[..., 3] = 0
    tifffile.imwrite(file, values, photometric="rgb", extrasamples=["assocalpha"])
    with pytest.raises(DataError, match="alpha 0 everywhere"):
        images.decode(file.getvalue(), "a.tif")
