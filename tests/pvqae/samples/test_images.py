import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.samples import decoding, geometry, images

RNG = np.random.default_rng(0)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def grey(height: int = 6, width: int = 9) -> np.ndarray:
    return RNG.integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_eight_bit_grey_is_repeated_and_scaled(tmp_path: Path, suffix: str) -> None:
    values = grey()
    lossless = {"lossless": True} if suffix == "webp" else {}
    image = images.read(save(tmp_path / f"a.{suffix}", Image.fromarray(values), **lossless))
    assert image.shape == (6, 9, 3)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, np.repeat(values[..., None] / 255, 3, axis=2), atol=1e-7)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_keeps_its_precision(tmp_path: Path, suffix: str) -> None:
    values = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    np.testing.assert_allclose(images.read(path)[..., 0], values / 65535, atol=1e-7)
    assert images.header(path) == images.Header(9, 6, 1, 16, "")


def deep_png(values: np.ndarray) -> bytes:
    """A 16 bit RGB PNG by hand: Pillow writes none."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = {b"IHDR": struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_sixteen_bit_colour_is_read_as_eight_bit(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    assert images.header(tmp_path / "a.png") == images.Header(9, 6, 3, 8, "")
    np.testing.assert_allclose(images.read(tmp_path / "a.png"), values / 65535, atol=1 / 255)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_header_agrees_with_the_decoded_image(tmp_path: Path, mode: str, channels: int) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RNG.integers(0, 256, (5, 8, 3), dtype=np.uint8)).convert(mode))
    header = images.header(path)
    assert (header.height, header.width, header.channels, header.bit_depth) == (5, 8, channels, 8)
    image = images.read(path)
    assert image.shape == (5, 8, 3)
    assert bool(np.ptp(image, axis=2).max() > 0) == (channels == 3)


def test_cmyk_and_palette_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for path in (
        save(tmp_path / "a.jpg", red.convert("CMYK"), quality=100),
        save(tmp_path / "b.png", red.convert("P", palette=Image.Palette.ADAPTIVE)),
    ):
        np.testing.assert_allclose(images.read(path), np.broadcast_to([1, 0, 0], (4, 4, 3)), atol=0.02)


def test_transparent_pixels_show_no_hidden_colour(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    layer.putpixel((1, 1), (0, 0, 0, 255))
    shown = images.read(save(tmp_path / "a.png", layer))
    assert (shown[1, 1] == 0).all()
    assert shown.sum() == 3 * 15


@pytest.mark.parametrize("alpha", [0, 1, 128])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_an_alpha_that_is_the_same_everywhere_says_nothing(tmp_path: Path, alpha: int, mode: str, suffix: str) -> None:
    colours = RNG.integers(0, 256, (5, 8, 1 if mode == "LA" else 3), dtype=np.uint8)
    layer = Image.fromarray(np.dstack([colours, np.full((5, 8), alpha, np.uint8)]), mode)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", layer, **options)
    np.testing.assert_allclose(images.read(path), np.broadcast_to(colours / 255, (5, 8, 3)), atol=1e-7)


def test_orientation_is_applied_and_capture_time_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    values = grey()
    path = save(tmp_path / "a.png", Image.fromarray(values), exif=exif)
    np.testing.assert_allclose(images.read(path)[..., 0], np.rot90(values, -1) / 255, atol=1e-7)
    header = images.header(path)
    assert (header.width, header.height, header.captured_at) == (6, 9, "2024-05-06T07:08:09")


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _animation() -> bytes:
    buffer, frames = io.BytesIO(), [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _pages() -> bytes:
    buffer, frames = io.BytesIO(), [Image.new("L", (4, 4), value) for value in (0, 255)]
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _floating() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("truncated.png", _png()[:-2000], "truncated"),
        ("empty.png", b"", "empty file"),
        ("text.png", b"not an image", "none of the formats"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of the formats"),
        ("animation.webp", _animation(), "animation"),
        ("pages.tif", _pages(), "pages"),
        ("floating.tif", _floating(), "floating point"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: expected .*{found}"):
        images.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: .*no file"):
        images.read(tmp_path / "gone.png")


@pytest.mark.parametrize(("width", "height"), [(9_000, 9_000), (10_000, 10_000), (60_000, 60_000)])
def test_pixel_bombs_are_refused_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.pgm"
    path.write_bytes(b"P5 %d %d 255\n" % (width, height))
    with pytest.raises(DataError, match=r"bomb\.pgm: expected at most|DecompressionBomb"):
        images.header(path)


def test_byte_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(grey(64, 64)))
    monkeypatch.setattr(decoding, "_MAX_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 bytes"):
        images.read(path)


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "raw").mkdir(parents=True)
    outside = save(tmp_path / "a.png", Image.fromarray(grey()))
    inside = save(root / "raw" / "a.png", Image.fromarray(grey()))
    (root / "link.png").symlink_to(outside)
    (root / "good_link.png").symlink_to(inside)
    assert images.read("raw/a.png", root).shape == images.read("good_link.png", root).shape == (6, 9, 3)
    for path in ("../a.png", "raw/../../a.png", str(outside), "link.png"):
        with pytest.raises(DataError, match="inside"):
            images.read(path, root)


@pytest.mark.parametrize("height", [7, 600])  # in one go, and some rows at a time
@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 8), (1, 16)])
def test_written_images_read_back(tmp_path: Path, channels: int, bit_depth: int, height: int) -> None:
    picture = RNG.random((height, 5, 3), dtype=np.float32)
    picture = np.repeat(picture[..., :1], 3, axis=2) if channels == 1 else picture
    path = tmp_path / "new" / "a.png"
    images.write(path, picture, channels, bit_depth)
    header = images.header(path)
    assert (header.channels, header.bit_depth) == (channels, bit_depth)
    np.testing.assert_allclose(images.read(path), picture, atol=0.5 / (2**bit_depth - 1) + 1e-6)


def params(aspect: str, size: int = 64) -> config.Image:
    return config.Image.model_validate({"size": size, "aspect": aspect})


@pytest.mark.parametrize("aspect", list(geometry._ASPECTS))
@pytest.mark.parametrize(("height", "width"), [(100, 250), (250, 100), (40, 16), (64, 64), (120, 110)])
def test_every_layout_covers_the_canvas_once_stitched(aspect: str, height: int, width: int) -> None:
    laid = geometry.canvas(RNG.random((height, width, 3), dtype=np.float32), params(aspect))
    rows, columns = np.mgrid[: laid.height, : laid.width].astype(np.float32)
    smooth = np.sin(rows / 17) + columns / laid.width
    maps = []
    for view in laid.views:
        assert view.pixels.shape == (3, 64, 64)
        assert view.valid.shape == (64, 64)
        assert view.pixels.min() >= 0
        assert view.pixels.max() <= 1
        assert view.pixels.dtype == np.float32
        assert view.valid.sum() == view.height * view.width
        values = np.full((64, 64), np.nan, dtype=np.float32)  # what lies on padding must not matter
        top, left = max(view.top, 0), max(view.left, 0)
        values[view.valid] = smooth[top : top + view.height, left : left + view.width].ravel()
        maps.append(values)
    np.testing.assert_allclose(laid.stitch(maps), smooth, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(100, 250), (250, 100)])
def test_shapes_of_oblong_images(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.float32)
    tall = height > width
    squash, letterbox, auto, tile = (geometry.canvas(image, params(a)) for a in ("squash", "letterbox", "auto", "tile"))
    assert (squash.height, squash.width) == (64, 64)
    assert squash.views[0].valid.all()
    assert (letterbox.height, letterbox.width) == ((64, 26) if tall else (26, 64)) == (auto.height, auto.width)
    view = letterbox.views[0]
    assert (view.top, view.left) == ((0, -19) if tall else (-19, 0))
    assert (tile.height, tile.width) == ((160, 64) if tall else (64, 160))
    assert len(tile.views) == 3
    assert all(v.valid.all() for v in tile.views)


def test_letterbox_keeps_the_picture_in_its_valid_part() -> None:
    image = RNG.random((26, 64, 3), dtype=np.float32)  # already in model pixels
    view = geometry.canvas(image, params("letterbox")).views[0]
    np.testing.assert_array_equal(view.pixels[:, view.valid].reshape(3, 26, 64), image.transpose(2, 0, 1))


def test_tiles_show_no_seam() -> None:
    laid = geometry.canvas(np.zeros((64, 160, 3), dtype=np.float32), params("tile"))
    steps = laid.stitch([np.full((64, 64), float(i)) for i, _ in enumerate(laid.views)])
    assert np.abs(np.diff(steps, axis=1)).max() < 0.2  # a hard border would jump by 0.5 or 1


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.float32)
    stripes[:, ::2] = 1
    small = geometry.canvas(stripes, params("squash")).views[0].pixels[:, 2:-2, 2:-2]
    np.testing.assert_allclose(small, 0.5, atol=0.02)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_a_mask_never_vanishes_and_never_appears(height: int, width: int, data: st.DataObject) -> None:
    mask = np.zeros((height, width), dtype=np.bool_)
    assert not geometry.resize_mask(mask, 64, 64).any()
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    small = geometry.resize_mask(mask, 64, 48)
    assert small.shape == (64, 48)
    assert small.any()
    assert geometry.resize_mask(np.ones_like(mask), 64, 48).all()
