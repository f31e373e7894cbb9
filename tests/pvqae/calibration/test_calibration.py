import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from pvqae.calibration import thresholds
from pvqae.calibration.thresholds import card, realised_rates, threshold
from pvqae.core.errors import CalibrationError


@given(st.integers(1, 400), st.integers(1, 99))
def test_the_threshold_is_the_conformal_order_statistic(n: int, percent: int) -> None:
    wanted = math.ceil((n + 1) * (1 - Fraction(percent, 100)))  # exact
    found = threshold(np.arange(n, dtype=float)[::-1], percent / 100)
    assert found.value == min(wanted, n) - 1
    assert bool(found.warnings) == (wanted > n)


@pytest.mark.parametrize(("n", "rate"), [(60, 0.05), (199, 0.05), (30, 0.1)])
def test_the_realised_rate_is_at_most_the_target_and_as_spread_as_said(n: int, rate: float) -> None:
    rng, realised = np.random.default_rng(0), []
    for _ in range(4000):  # uniform scores: the realised rate of a threshold t is 1 - t
        realised.append(1 - threshold(rng.random(n), rate).value)
    found = threshold(rng.random(n), rate)
    k = math.ceil((n + 1) * (1 - rate))
    assert np.mean(realised) <= rate + 0.002
    assert np.mean(realised) == pytest.approx((n + 1 - k) / (n + 1), abs=0.002)
    low, high = found.interval_95
    assert (low, high) == tuple(beta.ppf([0.025, 0.975], n + 1 - k, k))
    assert np.mean((np.array(realised) >= low) & (np.array(realised) <= high)) == pytest.approx(0.95, abs=0.015)


def test_any_growing_transform_of_the_scores_raises_the_same_alarms() -> None:
    scores = np.random.default_rng(1).random(77)
    plain, bent = threshold(scores, 0.1), threshold(np.exp(5 * scores), 0.1)
    assert (scores > plain.value).sum() == (np.exp(5 * scores) > bent.value).sum() == 6


@pytest.mark.parametrize("n", [1, 5, 18])
def test_too_few_normals_give_their_maximum_and_a_warning_with_numbers(n: int) -> None:
    scores = np.random.default_rng(2).random(n)
    found = threshold(scores, 0.05)
    assert found.value == scores.max()
    assert found.smallest_supported_rate == 1 / (n + 1)
    (words,) = found.warnings
    assert "needs at least 19 normals" in words
    assert f"there are {n}" in words
    assert not threshold(np.arange(19.0), 0.05).warnings


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_scores_that_are_none_or_not_finite_are_an_error(scores: list[float]) -> None:
    with pytest.raises(CalibrationError, match="finite scores of unseen normals"):
        threshold(np.array(scores), 0.05)


KEYS = {
    *("threshold", "map_threshold", "map_scale", "rule", "method", "n", "n_groups", "target_rate"),
    *("smallest_supported_rate", "interval_95", "manifest_sha256", "scores", "warnings"),
}


def judged(n: int = 40) -> pd.DataFrame:
    scores = np.random.default_rng(3).random(n)
    return pd.DataFrame({"sample_id": range(n), "group_id": [i // 2 for i in range(n)], "score": scores})


def test_the_card_says_everything_as_plain_json() -> None:
    frame, peaks = judged(), np.linspace(1, 2, 40)
    chosen = threshold(frame["score"].to_numpy(), 0.1)
    found = card(chosen, frame, peaks, 0.5, "cross_fit", "ab" * 32)
    assert found.keys() == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["threshold"], found["n"], found["n_groups"]) == (chosen.value, 40, 20)
    assert (found["target_rate"], found["method"], found["manifest_sha256"]) == (0.1, "cross_fit", "ab" * 32)
    assert found["rule"] == thresholds._RULE
    scores = found["scores"]
    assert isinstance(scores, list)
    assert scores == sorted(scores)
    assert len(scores) == 40


def test_heatmap_colours_start_at_the_middle_and_end_above_what_normals_reach() -> None:
    found = card(threshold(judged()["score"].to_numpy(), 0.1), judged(), np.linspace(1, 2, 40), 0.5, "held_out", "")
    assert found["map_threshold"] == threshold(np.linspace(1, 2, 40), 0.1).value
    low, high = found["map_scale"]  # type: ignore[misc]
    assert low == 0.5 < found["map_threshold"] < high  # type: ignore[operator]


def test_the_card_repeats_the_warnings() -> None:
    few = judged(5)
    chosen = threshold(few["score"].to_numpy(), 0.05)
    assert card(chosen, few, np.arange(5.0), 0.0, "cross_fit", "")["warnings"] == list(chosen.warnings) != []


def _maps(n: int, seed: int, side: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.exponential(size=(side, side + 5)) * rng.uniform(0.5, 2)).astype(np.float32) for _ in range(n)]


def _pixel_card(maps: list[np.ndarray], groups: list[str], target: float) -> dict[str, Any]:
    curves = [thresholds.area_curve(one) for one in maps]
    return thresholds.pixel_card(curves, groups, target, sum(one.size for one in maps))


@pytest.mark.parametrize("target", [0.001, 0.01, 0.2])
def test_the_pixel_threshold_marks_the_target_area_of_normals_and_no_more(target: float) -> None:
    maps = _maps(30, 1)
    found = _pixel_card(maps, [str(i) for i in range(30)], target)
    area = np.mean([(one > found["threshold"]).mean() for one in maps])
    assert target * 0.96 - 2e-5 <= area <= found["area"] + 1e-12 <= target + 2e-12
    lower = np.quantile(np.concatenate([one.ravel() for one in maps]), 1 - target)  # maps of one size weigh the same
    assert found["threshold"] == pytest.approx(lower, rel=0.02)
    assert found["n_marked"] == sum((one > found["threshold"]).any() for one in maps)
    assert (found["n"], found["n_groups"], found["pixels"]) == (30, 30, 30 * 40 * 45)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_images_weigh_the_same_whatever_their_size() -> None:
    small, large = np.zeros((10, 10), np.float32), np.zeros((100, 100), np.float32)
    small[0, :4] = 1.0  # 4 % of one image, .04 % of all pixels
    assert _pixel_card([small, large], ["a", "b"], 0.03)["threshold"] == 0
    assert _pixel_card([small, large], ["a", "b"], 0.01)["threshold"] == 1


def test_the_interval_of_the_marked_area_holds_for_new_normals() -> None:
    """Drawn again and again, the area that a threshold marks of very many normals is mostly within what it said."""
    truth, held, areas = _maps(400, 2, side=16), 0, []
    for seed in range(60):
        found = _pixel_card(_maps(30, 100 + seed, side=16), [str(i) for i in range(30)], 0.02)
        areas.append(np.mean([(one > found["threshold"]).mean() for one in truth]))
        held += found["interval_95"][0] <= areas[-1] <= found["interval_95"][1]
    assert np.mean(areas) == pytest.approx(0.02, rel=0.25)
    assert held >= 0.85 * 60


def test_images_of_one_part_count_once_for_the_interval() -> None:
    maps = _maps(10, 3)
    alone = _pixel_card(maps, [str(i) for i in range(10)], 0.01)
    threefold = _pixel_card([one for one in maps for _ in range(3)], [str(i // 3) for i in range(30)], 0.01)
    assert threefold["interval_95"] == pytest.approx(alone["interval_95"], rel=0.02)
    assert threefold["threshold"] == alone["threshold"]
    assert _pixel_card(maps, ["a"] * 10, 0.01)["interval_95"] is None


def test_maps_without_any_contrast_mark_nothing() -> None:
    found = _pixel_card([np.full((8, 8), 2.5, np.float32)] * 3, ["a", "b", "c"], 0.001)
    assert (found["threshold"], found["area"], found["n_marked"]) == (2.5, 0.0, 0)


def test_realised_rates_average_to_the_target_and_repeat_themselves() -> None:
    scores = np.random.default_rng(4).normal(size=400)
    groups = [f"g{i // 2}" for i in range(400)]
    rates = realised_rates(scores, groups, 0.05, draws=200, seed=0)
    assert rates.shape == (200,)
    assert 0.035 <= rates.mean() <= 0.065
    np.testing.assert_array_equal(rates, realised_rates(scores, groups, 0.05, draws=200, seed=0))
    assert not np.array_equal(rates, realised_rates(scores, groups, 0.05, draws=200, seed=1))


def test_a_half_never_divides_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(scores: np.ndarray, rate: float) -> thresholds._Threshold:
        seen.append(scores)
        return real(scores, rate)

    real = thresholds.threshold
    monkeypatch.setattr(thresholds, "threshold", spy)
    scores = np.repeat(np.arange(10.0), 3)  # the score names the group
    realised_rates(scores, [str(s) for s in scores], 0.2, draws=5, seed=0)
    for half in seen:
        assert len(half) == 15
        assert all((half == value).sum() in (0, 3) for value in range(10))


def test_a_threshold_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        threshold(np.arange(30.0), 0.1).value = 0.0  # type: ignore[misc]
