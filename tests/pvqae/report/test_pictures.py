"""Pictures: a scale that does not depend on the image, and marks that nothing hides."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pvqae.report import pictures

GREY = np.full((20, 30, 3), 100, np.uint8)


def _lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours, 0 to 100."""
    linear = np.where(colours <= 10, colours / 3294.6, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


@pytest.mark.parametrize("anchors", [pictures.HEAT, pictures.LEVELS])
def test_lightness_rises_evenly(anchors: pictures.Colours) -> None:
    steps = np.diff(_lightness(pictures.colours(np.linspace(0, 1, 9), anchors).astype(float)))
    assert steps.min() > 5
    assert steps.max() < 3 * steps.min()


def test_values_beyond_the_scale_take_its_end_colours() -> None:
    ends = pictures.colours(np.array([-3.0, 0.0, 1.0, 7.0]))
    assert (ends[0] == ends[1]).all()
    assert (ends[2] == ends[3]).all()


def test_the_heatmap_of_a_value_does_not_depend_on_the_rest_of_the_image() -> None:
    calm, hot = np.full((20, 30), 0.5, np.float32), np.full((20, 30), 0.5, np.float32)
    hot[:5, :5] = 50
    one, other = (pictures.heatmap(GREY, heat, (0.0, 2.0), threshold=100.0) for heat in (calm, hot))
    assert (one[10:, 10:] == other[10:, 10:]).all()
    assert (one[:5, :5] != other[:5, :5]).any()


def test_outline_marks_around_the_mask_and_leaves_the_defect_visible() -> None:
    mask = np.zeros((20, 30), bool)
    mask[8:12, 10:20] = True
    drawn = pictures.outline(GREY, mask)
    assert (drawn[mask] == GREY[mask]).all()
    assert (drawn[7, 10:20] == pictures._OUTLINE).all()
    assert (pictures.outline(GREY, np.zeros_like(mask)) == GREY).all()


def test_shrink_keeps_one_hot_pixel_and_thumbnail_the_shape() -> None:
    heat = np.zeros((500, 1300), np.float32)
    heat[499, 1299] = 7
    small = pictures.shrink(heat)
    assert small.shape == (98, 256)
    assert small.max() == small[-1, -1] == 7
    assert pictures.thumbnail(np.zeros((500, 1300, 3), np.uint8)).shape == (98, 256, 3)
    assert pictures.thumbnail(np.zeros((256, 2048, 3), np.uint8)).shape == (85, 683, 3)  # a line scan stays readable
    assert pictures.shrink(np.zeros((256, 2048), np.float32)).shape == (85, 683)
    assert pictures.thumbnail(np.zeros((100, 10000, 3), np.uint8)).shape == (10, 1024, 3)
    assert pictures.shrink(heat[:40, :50]).shape == (40, 50)


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_levels_have_distinct_colours_and_fill_the_picture(levels: int) -> None:
    cells = np.arange(levels)[None, :].repeat(2, 0)
    drawn = pictures.level_map(cells, levels, (32, 16 * levels))
    assert drawn.shape == (32, 16 * levels, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == levels
    assert (drawn[0, -1] == pictures.level_colours(levels)[-1]).all()


def test_padding_rows_are_dropped_and_lone_padding_is_grey() -> None:
    cells = np.array([[-1, -1], [0, 1], [-1, 1], [-1, -1]])
    drawn = pictures.level_map(cells, 2, (4, 4))
    assert (drawn[0, 0] == pictures.level_colours(2)[0]).all()
    assert (drawn[3, 0] == pictures._PADDING).all()
    assert (pictures.level_map(np.full((2, 2), -1), 2, (4, 4)) == pictures._PADDING).all()


def test_encodings_open_and_png_is_exact() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(BytesIO(pictures.png(noise)))) == noise).all()
    assert Image.open(BytesIO(pictures.webp(noise))).size == (9, 12)
