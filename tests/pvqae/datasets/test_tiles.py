import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pvqae.datasets import mtsd
from pvqae.datasets.mtsd import Exposure


def photographs(tile: int, numbers: list[int], size: tuple[int, int], crop: int = 0) -> list[Exposure]:
    """Exposures 1, 2, .. of one tile: other light and noise, sides that differ by a few pixels."""
    surface = ndimage.gaussian_filter(np.random.default_rng(tile).normal(size=size), 2)
    surface = 0.5 + 0.2 * surface / surface.std()
    found = []
    for index, number in enumerate(numbers):
        noise = np.random.default_rng([tile, index]).normal(0, 0.02, size)
        picture = (surface * (0.5 + 0.1 * index) + noise).astype(np.float32)
        found.append(mtsd.exposure(number, index + 1, picture[: size[0] - index, crop * (index % 2) :]))
    return found


STEPS = [0, 20, 45, 60, 80, 110]


def numbers(start: int) -> list[int]:
    return [start + step for step in STEPS]


def sets(groups: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, g in enumerate(groups) if g == name) for name in groups}


def test_tiles_one_after_the_other() -> None:
    items = [p for tile in range(4) for p in photographs(tile, numbers(1000 * tile), (200, 120))]
    assert mtsd.group(items) == [1000 * tile for tile in range(4) for _ in STEPS]


def test_two_tiles_in_turns() -> None:
    items = photographs(1, numbers(0), (200, 120)) + photographs(2, numbers(7), (210, 260))
    assert mtsd.group(items) == [0] * 6 + [7] * 6


def test_equal_sizes_in_turns_are_told_apart_by_texture() -> None:
    items = photographs(1, numbers(0), (200, 120)) + photographs(2, numbers(7), (200, 120))
    assert mtsd.group(items) == [0] * 6 + [7] * 6


def test_a_crop_stays_with_its_tile() -> None:
    items = photographs(1, numbers(0), (200, 160), crop=70) + photographs(2, numbers(900), (330, 420))
    assert mtsd.group(items) == [0] * 6 + [900] * 6


def test_the_same_tile_photographed_again_far_later_is_one_group() -> None:
    again = photographs(1, numbers(90_000), (200, 120))
    items = photographs(1, numbers(0), (200, 120)) + photographs(2, numbers(3000), (200, 120)) + again
    assert mtsd.group(items) == [0] * 6 + [3000] * 6 + [0] * 6


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(18)))
def test_the_order_of_the_files_does_not_matter(order: list[int]) -> None:
    items = [p for tile in range(3) for p in photographs(tile, numbers(400 * tile), (90, 70 + 20 * tile))]
    groups = mtsd.group(items)
    assert mtsd.group([items[i] for i in order]) == [groups[i] for i in order]


@pytest.mark.parametrize("count", [40])
def test_equal_tiles_in_a_row_do_not_become_one_chain(count: int) -> None:
    """Sizes, numbers and gaps say nothing here; an exposure occurs once per tile."""
    items = [p for tile in range(count) for p in photographs(tile, numbers(130 * tile), (64, 64))]
    assert sets(mtsd.group(items)) == {frozenset(range(6 * t, 6 * t + 6)) for t in range(count)}


def test_nothing_to_group() -> None:
    assert mtsd.group([]) == []
