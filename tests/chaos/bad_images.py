"""Bad images, drawn with a seed: what factories' disks, cameras and attackers put into a folder.

`REFUSED` must never give pixels; `SAME` must give those of `Bad.pixels` or be refused; `ANY` may give any finite
picture, because its format has no checksum that could tell.
"""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

Floats = np.ndarray
Expected = Literal["refused", "same", "any"]
REFUSED, SAME, ANY = "refused", "same", "any"
CODECS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}
LIMIT = 30_000  # pixels a side: 900 million, ten times what may be decoded


@dataclass(frozen=True)
class Bad:
    """`name` of the file, its bytes, and what may come of it."""

    name: str
    data: bytes
    expected: Expected
    pixels: Floats | None = None  # (H0, W0, 3) in [0, 1]


def texture(rng: random.Random, height: int = 24, width: int = 32) -> np.ndarray:
    """(height, width, 3) in 0 .. 255, all different."""
    return np.frombuffer(rng.randbytes(height * width * 3), dtype=np.uint8).reshape(height, width, 3)


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    out = io.BytesIO()
    lossless = {"lossless": True} if suffix == "webp" else {}
    image.save(out, CODECS.get(suffix, suffix.upper()), **lossless, **options)
    return out.getvalue()


def decoded(data: bytes) -> Floats:
    """What Pillow makes of sound bytes."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header says what it likes."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunk(kind, data) for kind, data in [(b"IHDR", head), *chunks, (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


Made = tuple[str, bytes, Expected, Floats | None]


def sound(rng: random.Random) -> tuple[str, bytes]:
    suffix = rng.choice(list(CODECS))
    return suffix, encoded(Image.fromarray(texture(rng)), suffix)


def truncated(rng: random.Random) -> Made:
    suffix, data = sound(rng)
    return suffix, data[: rng.randrange(len(data))], SAME, decoded(data)


def flipped(rng: random.Random) -> Made:
    suffix, data = sound(rng)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return suffix, bytes(changed), SAME if suffix == "png" else ANY, decoded(data)


def spliced(rng: random.Random) -> Made:
    """A piece gone, doubled, or of another file."""
    suffix, data = sound(rng)
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    middle = rng.choice([b"", data[start:end] * 2, rng.randbytes(end - start), sound(rng)[1]])
    return suffix, data[:start] + middle + data[end:], SAME if suffix == "png" else ANY, decoded(data)


def misnamed(rng: random.Random) -> Made:
    suffix, data = sound(rng)
    return rng.choice([s for s in CODECS if s != suffix]), data, SAME, decoded(data)


def no_image(rng: random.Random) -> Made:
    texts = [b"", b"\0", b"\0" * 5000, b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"P6\n"]
    texts += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
    texts += [b"P5 8 8 99999999999\n", b"P3\n8 8\n255\n1 2 3", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"GIF89a"]
    return rng.choice(list(CODECS)), rng.choice([*texts, rng.randbytes(rng.randrange(1, 4000))]), REFUSED, None


def tiny(rng: random.Random) -> Made:
    suffix = rng.choice(["png", "bmp", "tif", "ppm"])
    data = encoded(Image.fromarray(texture(rng, 1, rng.choice([1, 2]))), suffix)
    return suffix, data, SAME, decoded(data)


def huge_header(rng: random.Random) -> Made:
    """30,000 x 30,000 and more, in a few bytes."""
    side, other = LIMIT, rng.choice([LIMIT, 2**31 - 1, 90_000])
    packed = zlib.compress(b"\0" * 200_000, 9)
    return rng.choice(
        [
            ("png", png(side, other, (b"IDAT", packed)), REFUSED, None),
            ("ppm", b"P5 %d %d 255\n" % (side, other) + bytes(1000), REFUSED, None),
            ("bmp", bmp_header(side, other), REFUSED, None),
            ("tif", tiff_header(side, other), REFUSED, None),
        ]
    )


def bmp_header(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1000, 0, 0, 54) + head + bytes(1000)


def tiff_header(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, height)]
    tags += [(277, 3, 1), (279, 4, 2**32 - 1)]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + fields + bytes(4)


@cache
def much() -> bytes:
    """60 MB in 60 kB."""
    return zlib.compress(bytes(60_000_000), 9)


@cache
def wide_tiff() -> bytes:
    """225 million pixels in a megabyte."""
    return encoded(Image.new("1", (LIMIT // 2, LIMIT // 2)), "tif", compression="tiff_deflate")


def bomb(rng: random.Random) -> Made:
    """Few bytes that unpack to many, within a header that looks harmless."""
    row = zlib.compress(b"".join(b"\0" + rng.randbytes(32) for _ in range(24)))
    text = b"Comment\0\1\0\0\0" + much()
    pixels = (b"IDAT", row)
    return rng.choice(
        [
            ("png", png(32, 24, (b"iTXt", text), pixels), ANY, None),
            ("png", png(32, 24, (b"zTXt", b"Comment\0\0" + much()), pixels), ANY, None),
            ("png", png(32, 24, (b"iCCP", b"x\0\0" + much()), pixels), ANY, None),
            ("png", png(32, 24, (b"IDAT", much())), ANY, None),
            ("png", png(32, 24, *[(b"iTXt", text)] * 9, pixels), ANY, None),
            ("tif", wide_tiff(), REFUSED, None),
            ("png", png(32, 24, (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 9000), pixels), ANY, None),
        ]
    )


def colour_space(rng: random.Random) -> Made:
    """Sound pictures of less usual kinds: the right pixels or a refusal."""
    base = Image.fromarray(texture(rng))
    grey16 = Image.fromarray(np.frombuffer(rng.randbytes(24 * 32 * 2), dtype=np.uint16).reshape(24, 32))
    wide = (np.asarray(grey16, dtype=np.float32) / 65535)[..., None].repeat(3, axis=2)
    kinds = {
        "cmyk": lambda: ("jpg", encoded(base.convert("CMYK"), "jpg"), ANY, None),
        "cmyk tif": lambda: ("tif", encoded(base.convert("CMYK"), "tif"), ANY, None),
        "palette": lambda: of(encoded(base.convert("P", palette=Image.Palette.ADAPTIVE), "png"), "png"),
        "alpha": lambda: ("png", encoded(base.convert("RGBA"), "png"), SAME, np.asarray(base, np.float32) / 255),
        "grey alpha": lambda: of(encoded(base.convert("LA"), "png"), "png"),
        "one bit": lambda: of(encoded(base.convert("1"), "png"), "png"),
        "16 bit": lambda: ("png", encoded(grey16, "png"), SAME, wide),
        "16 bit tif": lambda: ("tif", encoded(grey16, "tif"), SAME, wide),
        "lab": lambda: ("tif", encoded(base.convert("LAB"), "tif"), ANY, None),
        "ycbcr": lambda: ("tif", encoded(base.convert("YCbCr"), "tif"), ANY, None),
    }
    return kinds[rng.choice(list(kinds))]()


def of(data: bytes, suffix: str) -> Made:
    return suffix, data, SAME, decoded(data)


def floating(rng: random.Random) -> Made:
    values = np.frombuffer(rng.randbytes(24 * 32 * 4), dtype=np.float32).reshape(24, 32).copy()
    values.flat[rng.randrange(values.size)] = rng.choice([np.nan, np.inf, -1.0, 1e30])
    return "tif", encoded(Image.fromarray(values), "tif"), REFUSED, None


def thirty_two_bit(rng: random.Random) -> Made:
    values = np.full((24, 32), rng.choice([65536, 2**31 - 1, -5]), dtype=np.int32)
    return "tif", encoded(Image.fromarray(values), "tif"), REFUSED, None


def moving(rng: random.Random) -> Made:
    frames = [Image.fromarray(texture(rng)) for _ in range(rng.randint(2, 4))]
    suffix = rng.choice(["gif", "png", "tif", "webp"])
    data = encoded(frames[0], suffix, save_all=True, append_images=frames[1:])
    return (suffix if suffix in CODECS else rng.choice(list(CODECS))), data, REFUSED, None


def turned(rng: random.Random) -> Made:
    """EXIF says how the camera was held; some say it wrongly."""
    exif, base, way = Image.Exif(), Image.fromarray(texture(rng)), rng.choice([1, 3, 6, 8, 0, 9, 65535])
    exif[0x0112] = way
    quarter = {3: 2, 6: 3, 8: 1}.get(way, 0)
    return "png", encoded(base, "png", exif=exif), SAME, np.rot90(np.asarray(base, np.float32) / 255, quarter)


def odd_metadata(rng: random.Random) -> Made:
    base = Image.fromarray(texture(rng))
    pixels = np.asarray(base, np.float32) / 255
    if rng.random() < 0.5:
        exif = b"Exif\0\0" + rng.choice([b"II*\0", b"MM\0*"]) + rng.randbytes(rng.randrange(200))
        return "jpg", encoded(base, "jpg", exif=exif), ANY, None
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * rng.choice([10, 100_000]), zip=True)
    return "png", encoded(base, "png", pnginfo=info, icc_profile=rng.randbytes(300)), SAME, pixels


def polyglot(rng: random.Random) -> Made:
    """An image that another program takes for something else."""
    base, packed = Image.fromarray(texture(rng)), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../evil.sh", "touch evil")
    tails = [packed.getvalue(), b"<script>alert(1)</script>", b"\n%PDF-1.7\n", b"#!/bin/sh\ntouch evil\n"]
    suffix = rng.choice(["png", "jpg", "bmp", "gif"])
    data = encoded(base, suffix) + rng.choice(tails)
    if suffix == "gif":
        return "png", data.replace(b"GIF89a", b"GIF89a"), REFUSED, None
    return suffix, data, SAME, decoded(encoded(base, suffix))


def strip(rng: random.Random) -> Made:
    """Long and thin: cheap to store, dear to enlarge."""
    shape = rng.choice([(8, 70_000), (70_000, 8), (1, 1_000_000), (3, 9_000)])
    suffix = rng.choice(["png", "tif"])
    data = encoded(Image.new("L", shape, 99), suffix)
    return suffix, data, SAME, None


KINDS: tuple[Callable[[random.Random], Made], ...] = (
    *(truncated, flipped, spliced, misnamed, no_image, tiny, huge_header, colour_space, floating, thirty_two_bit),
    *(moving, turned, odd_metadata, polyglot),
)
DEAR: tuple[Callable[[random.Random], Made], ...] = (bomb, strip)  # a tenth of a second each

NAMES = (
    *("{n} with spaces", "ünïcode-{n}-文字", "-rf-{n}", "=cmd|'C calc'!A{n}", "@SUM({n})", "a\nb-{n}", "a\rb-{n}"),
    *("tab\there-{n}", "..{n}", "...", "quote\"'{n}", "<img src=x onerror=alert({n})>", "%s%n{n}", "$(touch evil){n}"),
    *("back\\slash-{n}", "n" * 190 + "{n}", "\u202egnp.{n}", "\u2028line-{n}", "{n}\udcff", "c:{n}", "{n};rm -rf ~"),
)


def generate(seed: int, count: int) -> list[Bad]:
    """`count` bad images, every kind in turn, every sixteenth a dear one; names are unique."""
    found = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kinds = DEAR if number % 16 == 15 else KINDS
        suffix, data, expected, pixels = kinds[(number // 16 if kinds is DEAR else number) % len(kinds)](rng)
        stem = rng.choice(NAMES).format(n=number) if rng.random() < 0.2 else f"{number:05}"
        stem = f"{stem}{number}" if stem == "..." else stem
        found.append(Bad(f"{stem}.{suffix}", data, expected, pixels))
    return found
