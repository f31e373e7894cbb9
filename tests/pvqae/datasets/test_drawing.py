import base64
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.measure import points_in_poly

from pvqae.core.errors import DataError
from pvqae.datasets import drawing
from pvqae.datasets.drawing import Brush, Drawing, Ellipse, Polygon, Runs, Shape, Stamp
from pvqae.samples import images

SIZE = (12, 16)  # height, width


def drawn(*shapes: Shape, size: tuple[int, int] = SIZE) -> np.ndarray:
    return Drawing(Path("shapes.json"), shapes).mask(Path("a.png"), *size)


def centres(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(size[1])[None] + 0.5, np.arange(size[0])[:, None] + 0.5


def test_a_rectangle_between_pixels_marks_exactly_these() -> None:
    expected = np.zeros(SIZE, dtype=np.bool_)
    expected[3:8, 2:9] = True
    np.testing.assert_array_equal(drawn(Polygon(((2, 3), (9, 3), (9, 8), (2, 8)))), expected)
    np.testing.assert_array_equal(drawn(drawing.box(2, 3, 7, 5)), expected)
    np.testing.assert_array_equal(drawn(drawing.box(1.51, 2.51, 7.98, 5.98)), expected)  # no further centre is inside
    np.testing.assert_array_equal(
        drawn(Polygon(((2 / 16, 0.25), (9 / 16, 0.25), (9 / 16, 8 / 12), (2 / 16, 8 / 12)), True)), expected
    )


def test_half_planes_say_what_a_triangle_marks() -> None:
    x, y = centres()
    expected = (y < 10.2) & (x + y > 9.3) & (3 * x - 2 * y < 25.1)
    corners = (-0.9, 10.2), (45.5 / 3, 10.2), (8.74, 0.56)  # where two of the lines meet
    np.testing.assert_array_equal(drawn(Polygon(corners)), expected)


def test_the_inside_is_even_odd() -> None:
    twice = ((1, 1), (11, 1), (11, 11), (1, 11), (1, 1), (4, 4), (4, 8), (8, 8), (8, 4), (4, 4))
    expected = np.zeros(SIZE, dtype=np.bool_)
    expected[1:11, 1:11] = True
    expected[4:8, 4:8] = False
    np.testing.assert_array_equal(drawn(Polygon(twice)), expected)


def test_several_shapes_are_united_and_what_is_outside_is_cut() -> None:
    mask = drawn(drawing.box(-5, -5, 8, 7), drawing.box(2, 1, 100, 2))
    expected = np.zeros(SIZE, dtype=np.bool_)
    expected[:2, :3] = True
    expected[1:3, 2:] = True
    np.testing.assert_array_equal(mask, expected)


POINT = st.tuples(st.floats(-3, 19), st.floats(-3, 15))


@given(st.lists(POINT, min_size=3, max_size=9))
def test_polygons_agree_with_another_library(points: list[tuple[float, float]]) -> None:
    x, y = np.broadcast_arrays(*centres())
    inside = points_in_poly(np.stack([x.ravel(), y.ravel()], 1), np.array(points)).reshape(SIZE)
    # Next to an outline the other library may say either.
    far = np.full(SIZE, True)
    for (ax, ay), (bx, by) in pairwise([*points, points[0]]):
        length = (bx - ax) ** 2 + (by - ay) ** 2
        share = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1) if length > 0 else 0
        far &= np.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay)) > 1e-6
    np.testing.assert_array_equal(drawn(Polygon(tuple(points)))[far], inside[far])


QUARTERS = st.tuples(st.integers(-8, 72), st.integers(-8, 56))  # centres among them


@given(QUARTERS, QUARTERS)
def test_polygons_that_touch_share_no_pixel_and_leave_none_out(a: tuple[int, int], b: tuple[int, int]) -> None:
    """The line through two points, often through centres, too, divides the image."""
    first, along = np.array(a) / 4, np.array(b) / 4 - np.array(a) / 4
    if not along.any():
        along = np.array([1.0, 0.0])
    across = np.array([-along[1], along[0]])
    start, end, left, right = (tuple((first + 1000 * way).tolist()) for way in (-along, along, across, -across))
    one, other = drawn(Polygon((start, end, left))), drawn(Polygon((end, start, right)))
    np.testing.assert_array_equal(one.astype(int) + other, np.ones(SIZE))


def test_an_ellipse_turns_clockwise() -> None:
    x, y = centres()
    np.testing.assert_array_equal(drawn(Ellipse(8, 6, 4, 4)), np.hypot(x - 8, y - 6) < 4)
    np.testing.assert_array_equal(drawn(Ellipse(8, 6, 5, 2, 90)), drawn(Ellipse(8, 6, 2, 5)))
    along = ((x - 8) + (y - 6)) / np.sqrt(2)  # to the lower right
    across = ((y - 6) - (x - 8)) / np.sqrt(2)
    np.testing.assert_array_equal(drawn(Ellipse(8, 6, 4.9, 2.1, 45)), (along / 4.9) ** 2 + (across / 2.1) ** 2 < 1)
    np.testing.assert_array_equal(drawn(drawing.box(3, 4, 10, 4, 45)), (np.abs(along) < 5) & (np.abs(across) < 2))


def marked(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.repeat(np.repeat(rng.random((size[0] // 2, size[1] // 2)) < 0.4, 2, 0), 2, 1)


def runs_of(mask: np.ndarray, order: str) -> list[int]:
    flat = [False, *mask.ravel(order).tolist()]
    changes = [i - 1 for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    return np.diff([0, *changes, mask.size]).tolist()


def compressed(counts: list[int]) -> str:
    """COCO's own way, told in the sources of pycocotools."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
    return text


@pytest.mark.parametrize("seed", range(4))
def test_runs_of_coco_plain_and_compressed_and_of_cvat(seed: int) -> None:
    size = (60, 82)
    mask = marked(seed, size)
    counts = runs_of(mask, "F")
    np.testing.assert_array_equal(drawn(Runs(tuple(counts), size), size=size), mask)
    assert drawing.coco_counts(compressed(counts)) == tuple(counts)
    part = Runs(tuple(runs_of(mask[10:30, 4:24], "C")), (20, 20), True, 12, 7)
    expected = np.zeros(size, dtype=np.bool_)
    expected[12:32, 7:27] = mask[10:30, 4:24]
    np.testing.assert_array_equal(drawn(part, size=size), expected)


def written_by_others() -> np.ndarray:
    x, y = centres()
    return (np.hypot(x - 6.5, y - 5.5) < 4) | ((x > 12) & (y > 9))


def test_a_text_that_pycocotools_wrote() -> None:
    counts = drawing.coco_counts("W1562O00000001No0NTO00000")  # pycocotools 2.0.11
    np.testing.assert_array_equal(drawn(Runs(counts, SIZE)), written_by_others())


def test_a_code_that_label_studio_wrote() -> None:
    code = (  # encode_rle of label-studio-converter 0.0.59
        "00 00 03 00 39 1b fe 8f 00 c2 7f f8 9c 03 0d ff e2 30 0c 37 ff 88 c0 30 df fe 23 "
        "00 c3 7f f8 8c 03 0d ff e2 70 0c 27 ff 92 c0 2f ff e2 f0 0b ff f8 bc 02 ff f8 "
    )
    np.testing.assert_array_equal(drawn(Brush(bytes.fromhex(code), SIZE)), written_by_others())


def painted(mask: np.ndarray, word: int = 8) -> bytes:
    """Label Studio's code of an RGBA image with that alpha: a run of equal bytes, or of given ones, at a time."""
    flat = np.repeat(mask.ravel()[:, None] * 255, 4, 1).ravel()
    bits = f"{flat.size:032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    at = 0
    while at < flat.size:
        run = int(np.argmax(np.append(flat[at:] != flat[at], True)))
        if run > 4:
            bits += f"1{2:02b}{min(run, 256) - 1:08b}{flat[at]:08b}"
            at += min(run, 256)
        else:
            bits += f"0{1:02b}{run - 1:04b}" + "".join(f"{value:08b}" for value in flat[at : at + run])
            at += run
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def test_label_studios_brush() -> None:
    mask = marked(1)
    np.testing.assert_array_equal(drawn(Brush(painted(mask), SIZE)), mask)
    with pytest.raises(DataError, match=r"shapes\.json, a\.png: expected Label Studio's runs of the whole image"):
        drawn(Brush(painted(mask)[:-3], SIZE))
    with pytest.raises(DataError, match="expected marks on 20 x 12 pixels, found 16 x 12"):
        drawn(Brush(painted(mask), SIZE), size=(12, 20))


def test_a_stamp_is_a_small_mask() -> None:
    part, buffer = marked(2, (4, 6)), BytesIO()
    Image.fromarray(part).save(buffer, "PNG")
    expected = np.zeros(SIZE, dtype=np.bool_)
    expected[8:12, 10:16] = part
    np.testing.assert_array_equal(drawn(Stamp(buffer.getvalue(), 8, 10)), expected)
    with pytest.raises(DataError, match=r"expected a mask inside of 16 x 12 pixels, found 6 x 4 at \(11, 8\)"):
        drawn(Stamp(buffer.getvalue(), 8, 11))
    with pytest.raises(DataError, match=r"shapes\.json, a\.png: expected a readable image"):
        drawn(Stamp(base64.b64decode("AAAA"), 0, 0))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (Polygon(((1, 1), (2, 2))), "at least 3 points, found 2"),
        (Polygon(((1, 1), (2, 2), (float("nan"), 1))), "finite coordinates"),
        (Polygon(((1, 1), (1e300, -1e300), (3, 1))), "finite coordinates within 1e\\+07 pixels"),
        (Ellipse(1, 1, 0, 2), "an extent, found half axes 0 and 2"),
        (Runs((1, 2), SIZE), "runs over 16 x 12 pixels, found 2 over 3"),
        (Runs((-1, 193), SIZE), "runs over 16 x 12"),
        (Runs((0, 4), (2, 2)), "runs over 16 x 12 pixels, found 2 x 2"),
        (Runs((0, 4), (2, 2), True, -1, 0), "inside of 16 x 12"),
    ],
)
def test_what_cannot_be_drawn_names_both_files(shape: Shape, said: str) -> None:
    with pytest.raises(DataError, match=rf"^shapes\.json, a\.png: .*{said}"):
        drawn(shape)


@pytest.mark.parametrize("text", ["5 2", "o", "é"])
def test_text_that_is_no_run_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        drawing.coco_counts(text)


def test_files_are_united_and_must_have_the_images_size(tmp_path: Path) -> None:
    masks = [marked(1), marked(2)]
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, mask in zip(files, masks, strict=True):
        images.write(file, mask)
    found = drawing.united(files, tmp_path)
    np.testing.assert_array_equal(found.mask(Path("a.png"), *SIZE), masks[0] | masks[1])
    with pytest.raises(DataError, match=r"a\.png: expected a mask of 10 x 12 pixels, found 16 x 12"):
        found.mask(Path("a.png"), 12, 10)


def test_another_stated_size_names_both_files() -> None:
    with pytest.raises(DataError, match=r"x\.json, a\.png: expected marks on 16 x 12 pixels, found 8 x 12"):
        Drawing(Path("x.json"), (), (12, 8)).mask(Path("a.png"), *SIZE)
