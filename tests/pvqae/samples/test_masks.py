"""Masks are labels: whatever is not background is a defect, in every way that tools store it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvqae.core.errors import DataError
from pvqae.samples import images

SHAPE = (60, 80)
LEFT, RIGHT = np.s_[10:30, 5:30], np.s_[20:50, 40:70]


def two(left: int, right: int, ground: int = 0, dtype: type = np.uint8) -> np.ndarray:
    values = np.full(SHAPE, ground, dtype)
    values[LEFT], values[RIGHT] = left, right
    return values


MARKED = two(1, 1).astype(bool)


def palette(values: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(values, "P")
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


def painted(left: tuple[int, ...], right: tuple[int, ...], ground: tuple[int, ...], mode: str) -> Image.Image:
    picture = np.broadcast_to(np.uint8(ground), (*SHAPE, len(ground))).copy()
    picture[LEFT], picture[RIGHT] = left, right
    return Image.fromarray(picture, mode)


BLACK, WHITE, RED, NAVY = (0, 0, 0), (255, 255, 255), (128, 0, 0), (0, 0, 64)
MASKS: dict[str, Image.Image] = {
    "ones": Image.fromarray(two(1, 1)),
    "full": Image.fromarray(two(255, 255)),
    "types": Image.fromarray(two(3, 90)),
    "with a border label": Image.fromarray(two(15, 255)),
    "deep ones": Image.fromarray(two(1, 2, dtype=np.uint16)),
    "deep instances": Image.fromarray(two(300, 40000, dtype=np.uint16)),
    "bilevel": Image.fromarray(MARKED),
    "voc": palette(two(1, 4), BLACK, RED, (0, 128, 0), (128, 128, 0), NAVY),
    "black is not first": palette(two(0, 2, ground=1), WHITE, BLACK, NAVY),
    "no black": palette(two(1, 2), (68, 1, 84), RED, WHITE),
    "labels of one colour": palette(two(1, 2), BLACK, RED, RED),
    "beyond the palette": palette(two(1, 7), BLACK, RED),
    "colours": painted(RED, NAVY, BLACK, "RGB"),
    "white on transparent": painted((255, 255, 255, 255), (9, 9, 9, 255), (255, 255, 255, 0), "RGBA"),
    "black on transparent": painted((0, 0, 0, 255), (0, 0, 0, 130), (255, 255, 255, 0), "RGBA"),
    "overlay on black": painted((255, 0, 0, 90), (0, 0, 64, 128), (0, 0, 0, 255), "RGBA"),
    "opaque": painted((255, 0, 0, 255), (0, 0, 64, 255), (0, 0, 0, 255), "RGBA"),
    "alpha of zero": painted((255, 0, 0, 0), (0, 0, 64, 0), (0, 0, 0, 0), "RGBA"),
    "grey with alpha": painted((7, 255), (200, 255), (0, 0), "LA"),
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("name", MASKS)
def test_every_label_is_marked(tmp_path: Path, name: str, suffix: str) -> None:
    if suffix == "tif" and name == "beyond the palette":
        pytest.skip("Pillow fills the colour map of a TIFF")
    MASKS[name].save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(images.read_mask(tmp_path / f"a.{suffix}"), MARKED)


def test_a_transparent_palette_entry_is_background(tmp_path: Path) -> None:
    MASKS["voc"].save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), MARKED)


def test_many_labels_are_labels(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.uint16)
    values[:48] = np.arange(1, 13).repeat(4)[:, None] + 12 * np.arange(20).repeat(4)[None]
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), values > 0)


def soft(sigma: float = 1.5) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return np.rint(255 * gaussian_filter(MARKED.astype(np.float64), sigma)).astype(np.uint8)


def jpeg(values: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("again", [False, True])
def test_noise_of_compression_marks_nothing(tmp_path: Path, quality: int, again: bool) -> None:
    """As a JPEG, and as a PNG that was one."""
    path = tmp_path / ("a.png" if again else "a.jpg")
    data = jpeg(two(255, 255), quality)
    if again:
        Image.open(io.BytesIO(data)).save(path)
    else:
        path.write_bytes(data)
    assert (images.read_mask(path) != MARKED).mean() < 0.01


def test_a_soft_edge_ends_where_half_is_reached(tmp_path: Path) -> None:
    Image.fromarray(soft()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), soft() > 127)


@pytest.mark.parametrize("quality", [75, 95])
def test_a_weak_label_survives_compression(tmp_path: Path, quality: int) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(two(255, 100), quality))
    found = images.read_mask(tmp_path / "a.jpg")
    assert found[LEFT].mean() > 0.99
    assert found[RIGHT].mean() > 0.99
    assert found[~MARKED].mean() < 0.01


def test_a_mask_of_two_backgrounds_is_refused_and_its_repair_works(tmp_path: Path) -> None:
    picture = painted((0, 0, 0, 255), (255, 0, 0, 255), (0, 0, 0, 0), "RGBA")
    picture.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"one background, found transparent, black and coloured .* save it as grey"):
        images.read_mask(tmp_path / "a.png")
    Image.fromarray(MARKED.astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), MARKED)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (lambda: Image.fromarray(two(0, 0)), "values 0 to 0"),
        (lambda: Image.fromarray(two(1, 9, ground=3)), "values 1 to 9"),
        (lambda: palette(two(1, 2), BLACK, RED, NAVY), "indices 0 to 2, 0 the background"),
    ],
)
def test_the_values_of_a_mask_are_told(tmp_path: Path, values: Callable[[], Image.Image], seen: str) -> None:
    values().save(tmp_path / "a.png")
    assert images.marked(tmp_path / "a.png")[1] == seen
