import itertools
import tracemalloc

import numpy as np
import pytest

from pvqae.datasets import anomalies
from pvqae.datasets.anomalies import ANOMALIES

Floats = np.ndarray


def picture(height: int = 48, width: int = 80, grey: bool = False) -> Floats:
    image = np.random.default_rng(1).random((height, width, 3), dtype=np.float32) * 0.5 + 0.3
    return np.repeat(image[..., :1], 3, axis=2) if grey else image


@pytest.mark.parametrize("name", list(ANOMALIES))
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grey", [False, True])
class TestEveryAnomaly:
    def test_changes_only_what_its_mask_says(self, name: str, seed: int, grey: bool) -> None:
        image = picture(grey=grey)
        before = image.copy()
        made, mask = ANOMALIES[name](image, np.random.default_rng(seed), 0.1)
        assert made.shape == image.shape
        assert made.dtype == np.float32
        assert made.min() >= 0
        assert made.max() <= 1
        assert mask.shape == image.shape[:2]
        assert mask.dtype == np.bool_
        assert 0 < mask.sum() < mask.size
        np.testing.assert_array_equal(made[~mask], image[~mask])
        visible = np.abs(made - image).max(axis=2) > anomalies._VISIBLE
        assert visible[mask].mean() > 0.8
        np.testing.assert_array_equal(image, before)
        assert not grey or np.ptp(made, axis=2).max() == 0

    def test_grows_with_extent_and_only_grows(self, name: str, seed: int, grey: bool) -> None:
        image = picture(grey=grey)
        masks = [ANOMALIES[name](image, np.random.default_rng(seed), e)[1] for e in (1e-4, 0.01, 0.1, 0.4, 1.0)]
        assert masks[0].any()
        for small, large in itertools.pairwise(masks):
            assert not (small & ~large).any()
        assert masks[-1].sum() > masks[0].sum()

    def test_is_fixed_by_its_generator(self, name: str, seed: int, grey: bool) -> None:
        image = picture(grey=grey)
        first, again, other = (ANOMALIES[name](image, np.random.default_rng(s), 0.2)[0] for s in (seed, seed, seed + 9))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_only_its_box_is_computed_and_nothing_is_lost(
        self, name: str, seed: int, grey: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = picture(90, 140, grey)
        boxed = [ANOMALIES[name](image, np.random.default_rng(seed), extent) for extent in (0.003, 0.05)]
        monkeypatch.setattr(anomalies, "_box", lambda inside, margin: (slice(None), slice(None)))
        for (made, mask), extent in zip(boxed, (0.003, 0.05), strict=True):
            whole, its_mask = ANOMALIES[name](image, np.random.default_rng(seed), extent)
            np.testing.assert_array_equal(made, whole)
            np.testing.assert_array_equal(mask, its_mask)


@pytest.mark.parametrize("name", [n for n in ANOMALIES if n != "blur"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_shows_on_flat_and_saturated_images(name: str, value: float) -> None:
    flat = np.full((40, 40, 3), value, dtype=np.float32)
    assert ANOMALIES[name](flat, np.random.default_rng(0), 0.05)[1].any()


@pytest.mark.parametrize("name", [*anomalies.GATE_KINDS, *anomalies.SELECTION_KINDS])
def test_a_line_scan_needs_little_more_than_its_copy(name: str) -> None:
    scan = picture(4096, 512, grey=True)
    tracemalloc.start()
    ANOMALIES[name](scan, np.random.default_rng(0), 0.003)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * scan[..., 0].size  # bytes a pixel, 12 of them for the copy


@pytest.mark.parametrize("name", ["colour_shift", "blur", "fill"])
def test_reaches_the_whole_image(name: str) -> None:
    assert ANOMALIES[name](picture(), np.random.default_rng(0), 1.0)[1].mean() > 0.9


def test_what_judges_did_not_choose() -> None:
    assert set(anomalies.GATE_KINDS) | set(anomalies.SELECTION_KINDS) <= set(ANOMALIES)
    assert not set(anomalies.GATE_KINDS) & set(anomalies.SELECTION_KINDS)
