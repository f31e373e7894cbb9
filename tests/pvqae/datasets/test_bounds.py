"""Bounds follow the class: exposure changes nothing, blank is always far, and only training normals teach."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvqae.datasets import facts

LEVELS = st.lists(st.floats(0.2, 0.8), min_size=8, max_size=30)


def _judge(values: list[float], learnt: int) -> pd.Series:
    """Deviations in one class whose first `learnt` rows are its training normals."""
    frame = pd.DataFrame({"category": "bolt"}, index=range(len(values)))
    return facts.deviations(frame, pd.Series(values), pd.Series(np.arange(len(values)) < learnt))


@given(LEVELS, st.floats(0.01, 100))
def test_a_common_factor_changes_nothing(values: list[float], factor: float) -> None:
    np.testing.assert_allclose(_judge([v * factor for v in values], 8), _judge(values, 8), atol=1e-9)


@given(LEVELS)
def test_black_is_beyond_the_limit_and_twice_the_median_of_a_steady_class_is_not(values: list[float]) -> None:
    steady = [0.5] * len(values)
    assert _judge([*steady, 0.0], len(steady)).iloc[-1] < -facts.LIMIT
    assert abs(_judge([*steady, 1.0], len(steady)).iloc[-1]) < facts.LIMIT


@given(LEVELS, st.floats(0, 1))
def test_a_row_that_does_not_teach_moves_no_other(values: list[float], odd: float) -> None:
    np.testing.assert_allclose(_judge([*values, odd], len(values)).iloc[:-1], _judge(values, len(values)))


def test_a_class_without_training_normals_is_not_judged() -> None:
    assert _judge([0.5, 0.6], 0).isna().all()


@pytest.mark.parametrize(("contrast", "shows"), [(0.0, False), (0.004, False), (0.006, True), (0.1, True)])
def test_blank_is_judged_against_the_class(contrast: float, shows: bool) -> None:
    frame = pd.DataFrame({"category": ["bolt"] * 4})
    learnt = pd.Series([True, True, True, False])
    assert facts.shows_something(frame, pd.Series([0.1, 0.1, 0.1, contrast]), learnt).iloc[-1] == shows


def test_a_class_that_is_blank_as_a_whole_is_found() -> None:
    frame = pd.DataFrame({"category": ["bolt"] * 3})
    assert not facts.shows_something(frame, pd.Series([0.0] * 3), pd.Series([True] * 3)).any()
