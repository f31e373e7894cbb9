"""Chart points: bounded, and true to the numbers that they thin."""

import numpy as np
import pytest

from pvqae.evaluation import figures


def test_roc_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    defect = rng.random(5000) < 0.5
    points = figures._roc_points(defect, rng.normal(size=5000) + defect)
    x, y = points["false_positive_rate"], points["true_positive_rate"]
    assert len(x) == len(y) == figures._POINTS
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()


def test_roc_is_empty_without_defects() -> None:
    assert figures._roc_points(np.zeros(3, bool), np.arange(3.0))["false_positive_rate"] == []


@pytest.mark.parametrize("extreme", [3.0, 1e6])
@pytest.mark.parametrize("threshold", [-5.0, 1.5, 2.5, 2e6])
def test_every_image_is_counted_once_and_the_threshold_is_on_the_axis(extreme: float, threshold: float) -> None:
    scores = np.array([1.0, 1.1, 1.2, 2.0, extreme])
    defect = np.array([False, False, False, True, True])
    bars = figures._histogram(defect, scores, threshold)
    assert (sum(bars["counts"]["normal"]), sum(bars["counts"]["defect"])) == (3, 2)
    assert bars["edges"][0] <= threshold <= bars["edges"][-1]
    assert bars["scores"]["defect"] == [2.0, extreme]


def test_one_extreme_defect_does_not_squeeze_the_normals() -> None:
    normals = np.linspace(1, 1.4, 50)
    bars = figures._histogram(np.append(np.zeros(50, bool), True), np.append(normals, 1000.0), 1.5)
    assert np.count_nonzero(bars["counts"]["normal"]) > 4
    assert bars["clipped"]


def test_equal_scores_make_a_histogram() -> None:
    bars = figures._histogram(np.zeros(3, bool), np.ones(3), 1.0)
    assert sum(bars["counts"]["normal"]) == 3
    assert sum(bars["counts"]["defect"]) == 0


def test_training_makes_a_series_per_phase_fold_and_number() -> None:
    history = [
        {
            "phase": "prior",
            "fold": fold,
            "step": step,
            "loss": 1.0 * step,
            "bad": float("nan"),
            "on": True,
            "shares": [1],
        }
        for fold in (0, None)
        for step in range(1000)
    ]
    series = figures._training(history)
    assert [(one["phase"], one["fold"], one["name"]) for one in series] == [
        ("prior", "0", "loss"),
        ("prior", "None", "loss"),
    ]
    assert len(series[0]["step"]) == figures._POINTS
    assert series[0]["step"] == series[0]["value"]
    assert series[0]["step"][-1] == 999
