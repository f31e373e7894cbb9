import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvqae.core.config import Calibration
from pvqae.core.errors import DataError
from pvqae.datasets import splits
from pvqae.datasets.splits import _fold_of
from pvqae.training.network import _check_folds


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Normals of one to three classes, small and big, in groups of one to three images that lie in one split."""
    rows = []
    for category in "abc"[: draw(st.integers(1, 3))]:
        for group in range(draw(st.integers(1, 30))):
            split = draw(st.sampled_from(["train", "train", "calibrate"]))
            rows += [(category, f"{category}/{group}", split)] * draw(st.integers(1, 3))
    return pd.DataFrame(rows, columns=["category", "group_id", "split"])


settings_of_calibration = st.builds(
    Calibration, kfold_below=st.integers(0, 40), folds=st.integers(2, 5), promise_from=st.just(0)
)


@settings(max_examples=80, deadline=None)
@given(tables(), settings_of_calibration)
def test_no_fit_judges_what_it_learned_from_and_each_row_is_judged_once(
    table: pd.DataFrame, calibration: Calibration
) -> None:
    rows = splits.assign_folds(table, calibration)
    fits = splits.fits(rows)
    judged = np.zeros(len(rows), dtype=int)
    for fit in fits:
        learns, judges = splits.learns(rows, fit), splits.judges(rows, fit)
        assert not (learns & judges).any()
        groups_seen, groups_judged = set(rows["group_id"][learns]), set(rows["group_id"][judges])
        assert not groups_seen & groups_judged
        judged += judges
    small = rows.groupby("category")["category"].transform("size") < calibration.kfold_below
    expected = small | (rows["split"] == "calibrate")
    np.testing.assert_array_equal(judged, expected.astype(int))


@settings(max_examples=40, deadline=None)
@given(tables(), settings_of_calibration)
def test_the_shipped_fit_learns_all_of_small_classes_and_train_of_big_ones(
    table: pd.DataFrame, calibration: Calibration
) -> None:
    rows = splits.assign_folds(table, calibration)
    small = rows.groupby("category")["category"].transform("size") < calibration.kfold_below
    np.testing.assert_array_equal(splits.learns(rows, splits.FULL), small | (rows["split"] == "train"))


@settings(max_examples=40, deadline=None)
@given(tables(), settings_of_calibration)
def test_every_row_of_a_small_class_is_learned_by_all_fits_but_one(
    table: pd.DataFrame, calibration: Calibration
) -> None:
    rows = splits.assign_folds(table, calibration)
    fits = splits.fits(rows)
    times = np.sum([splits.learns(rows, fit) for fit in fits], axis=0)
    small = (rows["fold"] != splits._HELD_OUT).to_numpy()
    assert (times[small] == len(fits) - 1).all()


@pytest.mark.parametrize(("below", "fits"), [(10, ["full"]), (11, ["full", "fold-0", "fold-1"])])
def test_kfold_below_is_a_strict_bound(below: int, fits: list[str]) -> None:
    table = pd.DataFrame({"category": "a", "group_id": [f"g{i}" for i in range(10)], "split": "train"})
    assert splits.fits(splits.assign_folds(table, Calibration(kfold_below=below, folds=2))) == fits


def test_rows_keep_their_order_and_the_fold_of_their_group() -> None:
    table = pd.DataFrame(
        {"category": "a", "group_id": [f"g{i % 4}" for i in range(9)], "split": "train"}, index=range(9)
    )
    rows = splits.assign_folds(table, Calibration(kfold_below=99, folds=3))
    assert list(rows["group_id"]) == list(table["group_id"])
    assert list(rows["fold"]) == [_fold_of(f"g{i % 4}", 3) for i in range(9)]


def normals(groups: int) -> pd.DataFrame:
    names = [f"a/{number}" for number in range(groups)]
    return pd.DataFrame({"category": "a", "group_id": names, "split": "train"})


@pytest.mark.parametrize("kfold_below", [0, 100])
def test_a_class_of_one_part_is_refused_with_its_name(kfold_below: int) -> None:
    rows = splits.assign_folds(normals(1), Calibration(kfold_below=kfold_below, promise_from=0))
    with pytest.raises(DataError, match=r"a, f.*at least 2 groups.*add images of other parts"):
        _check_folds(rows)


@pytest.mark.parametrize("kfold_below", [0, 100])
def test_a_class_too_small_for_a_promise_has_the_shipped_fit_alone(kfold_below: int) -> None:
    for groups in (1, 7):
        rows = splits.assign_folds(normals(groups), Calibration(kfold_below=kfold_below, promise_from=8))
        _check_folds(rows)
        assert splits.fits(rows) == ["full"]
        assert splits.few(rows).all()
        assert splits.learns(rows, "full").all()
        assert not splits.judges(rows, "full").any()
    assert not splits.few(splits.assign_folds(normals(8), Calibration(kfold_below=kfold_below))).any()


@pytest.mark.parametrize("kfold_below", [0, 100])
def test_many_parts_are_enough(kfold_below: int) -> None:
    _check_folds(splits.assign_folds(normals(40), Calibration(kfold_below=kfold_below)))
