"""What a pixel threshold marks: regions, boxes in pixels of the image, and masks of its size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import find_objects, label

from pvqae.core import config
from pvqae.export import run_exported
from pvqae.samples import geometry

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def _map(seed: int, shape: tuple[int, int], share: float) -> np.ndarray:
    """Values of which about `share` are above 1, all different."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(shape[0] * shape[1]).reshape(shape) / (shape[0] * shape[1]) + share).astype(np.float32)


@given(st.integers(0, 10_000), shapes, st.sampled_from([0.0, 0.02, 0.3, 0.6, 0.95]))
def test_regions_in_map_pixels_are_scipy_s(seed: int, shape: tuple[int, int], share: float) -> None:
    heat = _map(seed, shape, share)
    found = geometry.marks(heat, 1.0, shape)
    numbers, count = label(heat > 1, np.ones((3, 3)))
    assert found["marked_area"] == pytest.approx((heat > 1).mean(), abs=1e-6)
    assert found["region_count"] == count
    wanted = [
        {
            **{"x": where[1].start, "y": where[0].start},
            **{"width": where[1].stop - where[1].start, "height": where[0].stop - where[0].start},
            **{"area": int((numbers == one).sum()), "share": pytest.approx((numbers == one).mean(), rel=1e-5)},
            "peak": pytest.approx(heat[numbers == one].max(), rel=1e-5),
        }
        for one, where in enumerate(find_objects(numbers), 1)
    ]
    wanted.sort(key=lambda one: -one["peak"].expected)
    assert found["regions"] == wanted[:50]


@given(st.integers(0, 10_000), shapes, st.sampled_from([0.02, 0.3, 0.5, 0.6, 0.95]))
def test_an_exported_detector_numbers_the_same_regions_without_scipy(
    seed: int, shape: tuple[int, int], share: float
) -> None:
    mask = _map(seed, shape, share) > 1
    if mask.any():
        for mine, theirs in zip(run_exported._numbered(mask), geometry.connected(mask), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_winding_region_is_one_for_both() -> None:
    mask = np.zeros((41, 40), dtype=bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert run_exported._numbered(mask)[1] == geometry.connected(mask)[1] == 1


@given(st.integers(0, 10_000), shapes, shapes, st.sampled_from([0.05, 0.3, 0.6]))
def test_boxes_are_those_of_the_mask_of_the_image_s_size(
    seed: int, shape: tuple[int, int], image: tuple[int, int], share: float
) -> None:
    heat = _map(seed, shape, share)
    found = geometry.marks(heat, 1.0, image)
    assert geometry.on_image(heat > 1, image).shape == image
    numbers, _ = geometry.connected(heat > 1)
    boxes = []
    for one in range(1, found["region_count"] + 1):
        rows, columns = np.nonzero(geometry.on_image(numbers == one, image))
        assert len(rows)
        boxes.append((columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1))
    listed = [(one["x"], one["y"], one["width"], one["height"]) for one in found["regions"]]
    assert len(listed) == min(50, len(boxes))
    assert not set(listed) - set(boxes)


def test_the_highest_fifty_are_listed_and_all_counted() -> None:
    heat = np.zeros((30, 30), dtype=np.float32)
    heat[::2, ::2] = 2 + np.random.default_rng(0).random((15, 15), dtype=np.float32)
    found = geometry.marks(heat, 1.0, (60, 60))
    peaks = [one["peak"] for one in found["regions"]]
    assert (found["region_count"], len(peaks)) == (225, 50)
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == pytest.approx(heat.max(), rel=1e-5)
    assert peaks[-1] > np.median(heat[::2, ::2])
    assert {one["area"] for one in found["regions"]} == {4}


@pytest.mark.parametrize("aspect", ["squash", "letterbox", "tile"])
def test_a_spot_of_the_image_is_found_where_it_is(aspect: str) -> None:
    image = np.zeros((150, 420, 3), dtype=np.float32)
    image[60:90, 300:330] = 1.0
    canvas = geometry.canvas(image, config.Image(size=64, aspect=aspect))
    heat = canvas.stitch([view.pixels[0] for view in canvas.views])
    found = geometry.marks(heat, 0.5, canvas.image_shape)
    (spot,) = found["regions"]
    assert canvas.image_shape == (150, 420)
    pixel = max(image.shape[0] / canvas.height, image.shape[1] / canvas.width, 1)
    for key, wanted in {"x": 300, "y": 60, "width": 30, "height": 30}.items():
        assert spot[key] == pytest.approx(wanted, abs=2 * pixel)
    assert spot["area"] == pytest.approx(900, rel=0.5)
    assert spot["share"] == found["marked_area"]
    mask = geometry.on_image(heat > 0.5, (150, 420))
    assert mask[75, 315]
    assert not mask[75, 200]


def test_nothing_marked_is_no_region() -> None:
    found = geometry.marks(np.zeros((5, 6), np.float32), 0.0, (5, 6))
    assert found == {"marked_area": 0.0, "region_count": 0, "regions": []}
