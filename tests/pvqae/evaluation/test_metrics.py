"""Figures against scikit-learn and a PRO computed threshold by threshold, and the invariants of a detection figure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import auc, f1_score, roc_auc_score, roc_curve

from pvqae.evaluation import metrics
from pvqae.evaluation.metrics import PixelMetrics

seeds = st.integers(0, 10_000)


def _images(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    defect = np.append([True, False], rng.random(rng.integers(1, 40)) < 0.5)
    scores = rng.normal(size=len(defect)) + defect
    return defect, np.round(scores) if ties else scores


def _maps(seed: int, ties: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three maps of different sizes, one without a defect; with `ties`, of five exact values of both signs."""
    rng = np.random.default_rng(seed)
    made = []
    for side, share in ((24, 0.03), (17, 0.1), (20, 0.0)):
        mask = rng.random((side, side + 3)) < share
        mask[3:6, 3:7] |= share > 0
        heat = rng.normal(size=mask.shape) + 1.5 * mask
        made.append(((np.round(heat) if ties else heat).astype(np.float32), mask))
    return made


def _measured(maps: list[tuple[np.ndarray, np.ndarray]]) -> PixelMetrics:
    pixels = PixelMetrics()
    for heat, mask in maps:
        pixels.add(heat, mask)
    return pixels


def _pro_by_hand(maps: list[tuple[np.ndarray, np.ndarray]], limit: float) -> float:
    thresholds = np.unique(np.concatenate([heat.ravel() for heat, _ in maps]))[::-1]
    x, y = [0.0], [0.0]
    for threshold in thresholds:
        overlaps, wrong, normal = [], 0, 0
        for heat, mask in maps:
            regions, count = label(mask, structure=np.ones((3, 3)))
            overlaps += [(heat[regions == one] >= threshold).mean() for one in range(1, count + 1)]
            wrong += int((heat[~mask] >= threshold).sum())
            normal += int((~mask).sum())
        x.append(wrong / normal)
        y.append(float(np.mean(overlaps)))
    keep = [(a, b) for a, b in zip(x, y, strict=True) if a < limit] + [(limit, float(np.interp(limit, x, y)))]
    return float(auc(*zip(*keep, strict=True))) / limit


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_image_auroc_and_roc_agree_with_sklearn(seed: int, ties: bool) -> None:
    defect, scores = _images(seed, ties)
    assert metrics.image_auroc(defect, scores) == pytest.approx(roc_auc_score(defect, scores))
    expected = roc_curve(defect, scores, drop_intermediate=False)[:2]
    np.testing.assert_allclose(metrics.roc(defect, scores), expected)


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_f1_max_is_the_best_over_all_thresholds(seed: int, ties: bool) -> None:
    defect, scores = _images(seed, ties)
    best = max(f1_score(defect, scores >= threshold) for threshold in scores)
    assert metrics.f1_max(defect, scores) == pytest.approx(best)


def test_auroc_counts_a_tie_as_half() -> None:
    assert metrics.image_auroc(np.array([True, False]), np.array([1.0, 1.0])) == 0.5


def test_rates_pass_a_normal_at_the_threshold_and_miss_a_defect_there() -> None:
    defect = np.array([False, False, False, False, True, True])
    scores = np.array([0.1, 0.5, 0.6, 0.2, 0.5, 0.9])
    assert metrics.rates(defect, scores, 0.5) == metrics._Rates(false_alarm=0.25, miss=0.5)


def test_image_figures_are_none_where_a_label_is_absent() -> None:
    scores = np.array([0.1, 0.9])
    normals, defects = np.array([False, False]), np.array([True, True])
    assert metrics.image_auroc(normals, scores) is None
    assert metrics.image_auroc(defects, scores) is None
    assert metrics.f1_max(normals, scores) is None
    assert metrics.rates(normals, scores, 0.5) == metrics._Rates(0.5, None)
    assert metrics.rates(defects, scores, 0.5) == metrics._Rates(None, 0.5)


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans())
def test_pixel_auroc_agrees_with_sklearn(seed: int, ties: bool) -> None:
    maps = _maps(seed, ties)
    heat = np.concatenate([one.ravel() for one, _ in maps])
    mask = np.concatenate([one.ravel() for _, one in maps])
    assert _measured(maps).auroc() == pytest.approx(roc_auc_score(mask, heat), abs=1e-12 if ties else 5e-4)


@settings(max_examples=8, deadline=None)
@given(seeds, st.booleans(), st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_agrees_with_the_definition(seed: int, ties: bool, limit: float) -> None:
    maps = _maps(seed, ties)
    found = _measured(maps).aupro(limit)
    assert found == pytest.approx(_pro_by_hand(maps, limit), abs=1e-9 if ties else 2e-3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans())
def test_the_best_pixel_f1_is_the_best_over_all_thresholds(seed: int, ties: bool) -> None:
    maps = _maps(seed, ties)
    heat = np.concatenate([one.ravel() for one, _ in maps])
    mask = np.concatenate([one.ravel() for _, one in maps])
    called = [heat >= threshold for threshold in np.unique(heat)]
    best = max(2 * (one & mask).sum() / (one.sum() + mask.sum()) for one in called)
    assert best - (0 if ties else 5e-3) <= _measured(maps).f1_max() + 1e-12 <= best + 2e-12


def test_aupro_weighs_regions_alike_whatever_their_size() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :10], mask[15, 15] = True, True
    heat = mask.astype(np.float32)
    heat[15, 15] = -1  # the one-pixel region is last of all: half of the regions, 1 % of the pixels
    assert _measured([(heat, mask)]).aupro() == pytest.approx(0.5)


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.eye(6, dtype=bool)
    mask[5, 0] = True
    heat = np.where(np.eye(6, dtype=bool), 1, 0).astype(np.float32)
    heat[5, 0] = -1
    assert _measured([(heat, mask)]).aupro() == pytest.approx(0.5)


def test_a_perfect_map_reaches_exactly_one_and_a_constant_map_is_chance() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[2:5, 2:5] = mask[9, 9] = True
    perfect = _measured([(mask.astype(np.float32), mask)] * 3)
    assert (perfect.auroc(), perfect.aupro()) == (1.0, 1.0)
    constant = _measured([(np.zeros((16, 16), np.float32), mask)])
    assert constant.auroc() == 0.5
    assert constant.aupro() == pytest.approx(0.15)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_pixel_figures_lie_in_the_unit_interval(seed: int) -> None:
    pixels = _measured(_maps(seed))
    assert 0 <= pixels.auroc() <= 1
    assert 0 <= pixels.aupro() <= 1


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([lambda x: x * 4, lambda x: x / 1024, np.exp, lambda x: x**3, lambda x: x - 5]))
def test_pixel_figures_do_not_change_under_monotone_transforms(seed: int, change: object) -> None:
    maps = _maps(seed, ties=True)
    before, after = _measured(maps), _measured([(change(heat).astype(np.float32), mask) for heat, mask in maps])
    assert after.auroc() == pytest.approx(before.auroc(), abs=1e-12)
    assert after.aupro() == pytest.approx(before.aupro(), abs=1e-12)


def test_order_of_the_images_does_not_matter() -> None:
    maps = _maps(1)
    forth, back = _measured(maps), _measured(maps[::-1])
    assert (forth.auroc(), forth.aupro()) == pytest.approx((back.auroc(), back.aupro()), abs=1e-12)


def test_pixel_figures_are_none_without_defect_or_without_normal_pixels() -> None:
    heat = np.ones((4, 4), np.float32)
    for mask in (np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        pixels = _measured([(heat, mask)])
        assert (pixels.auroc(), pixels.aupro()) == (None, None)
        assert pixels.f1_max() == (1.0 if mask.all() else None)
    assert PixelMetrics().auroc() is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error(bad: float) -> None:
    heat = np.ones((4, 4), np.float32)
    heat[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        PixelMetrics().add(heat, np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="finite"):
        metrics.image_auroc(np.array([True, False]), np.array([bad, 1.0]))


def test_a_mask_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="the same size"):
        PixelMetrics().add(np.ones((4, 4), np.float32), np.zeros((4, 5), bool))
