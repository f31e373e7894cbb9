"""What a refusal of an image says is done, and the refusal is gone."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pvqae.core.errors import DataError
from pvqae.samples import decoding, images

GREY = np.random.default_rng(0).integers(60, 180, (40, 60)).astype(np.uint8)


def page(file: Path) -> None:
    with Image.open(file) as image:
        image.seek(1)
        image.convert("RGB").save(file.with_suffix(".png"))


def quarters(file: Path) -> None:
    with Image.open(file) as image:
        width, height = image.size
        for number in range(4):
            part = image.crop((number * width // 4, 0, (number + 1) * width // 4, height))
            part.save(file.with_name(f"{number}{file.suffix}"))


def as_png(file: Path) -> None:
    values = tifffile.imread(file).astype(np.float64)
    deep = np.rint(values / max(values.max(), 1) * 65535).astype(np.uint16)
    Image.fromarray(deep).save(file.with_suffix(".png"))


def restored(file: Path) -> None:
    Image.fromarray(GREY).save(file)


def pages() -> bytes:
    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    return out.getvalue()


def animation() -> bytes:
    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "WEBP", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    return out.getvalue()


def tiff(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values)
    return out.getvalue()


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "PNG")
    return out.getvalue()


def large(width: int, height: int) -> bytes:
    return b"P4\n%d %d\n" % (width, height) + bytes((width + 7) // 8 * height)


Case = tuple[str, Callable[[], bytes], str, Callable[[Path], None]]
CASES: dict[str, Case] = {
    "wide scan": ("a.ppm", lambda: large(12_000, 7_000), "found 12000 x 7000; cut it into parts", quarters),
    "square scan": ("a.ppm", lambda: large(10_000, 10_000), "found 10000 x 10000; cut it into parts", quarters),
    "beyond Pillow's limit": ("a.ppm", lambda: large(9_000, 20_000), "found 180000000 pixels; cut it", quarters),
    "pages": ("a.tif", pages, "save the picture that shows the part as a file of its own", page),
    "animation": ("a.webp", animation, "save the picture that shows the part as a file of its own", page),
    "floating": ("a.tif", lambda: tiff(GREY / np.float32(255)), "save it as a PNG of 8 or 16 bit", as_png),
    "signed": ("a.tif", lambda: tiff(GREY.astype(np.int16)), "save it as a PNG of 8 or 16 bit", as_png),
    "long": ("a.tif", lambda: tiff(GREY.astype(np.uint32) * 1000), "save it as a PNG of 8 or 16 bit", as_png),
    "empty": ("a.png", bytes, "found an empty file; restore it from its source", restored),
    "truncated": ("a.png", lambda: png()[:-40], "restore it from its source", restored),
    "no image": ("a.png", lambda: b"hello", "found none of the formats .* save it as a PNG", restored),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_repair_that_a_refusal_names_works(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data, said, repair = CASES[name]
    (tmp_path / file).write_bytes(data())
    with pytest.raises(DataError, match=rf"{file}: expected .*{said}"):
        images.read(tmp_path / file)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # whoever cuts it has a tool for it
        repair(tmp_path / file)
    if repair is not restored:
        (tmp_path / file).unlink()
    for left in tmp_path.iterdir():
        assert images.header(left).width


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = Image.new("L", (60, 40), 90)
    flat.save(tmp_path / "a.bmp")
    monkeypatch.setattr(decoding, "_MAX_BYTES", 1000)
    with pytest.raises(DataError, match="cut it into parts, or save it with compression"):
        images.read(tmp_path / "a.bmp")
    flat.save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png").shape == (40, 60, 3)
