from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvqae.core.config import Shares
from pvqae.core.errors import DataError
from pvqae.datasets import splits
from pvqae.datasets.layouts import Found


def member(category: str, group_id: str, label: str, official: str | None) -> Found:
    return Found(Path(), "", category, label, "", None, group_id, official)


groups = st.integers(0, 30).map(lambda i: f"part/{i}")
members = st.lists(
    st.builds(member, st.just("part"), groups, st.sampled_from(["normal"] * 5 + ["defect"]), st.none()), max_size=60
)
officials = st.lists(
    st.builds(member, st.just("part"), groups, st.just("normal"), st.sampled_from(["train", "test"])), max_size=60
)


@given(members | officials)
def test_a_group_is_never_divided(rows: list[Found]) -> None:
    found = defaultdict(set)
    for member, split in zip(rows, splits.assign_splits(rows, Shares()), strict=True):
        found[member.group_id].add(split)
    assert all(len(names) == 1 for names in found.values())


@given(members)
def test_a_group_with_a_defect_is_test_and_nothing_else_learns_from_it(rows: list[Found]) -> None:
    defective = {m.group_id for m in rows if m.label == "defect"}
    for member, split in zip(rows, splits.assign_splits(rows, Shares()), strict=True):
        assert member.group_id not in defective or split == "test"


@given(members, members)
def test_adding_normals_moves_no_old_image(rows: list[Found], more: list[Found]) -> None:
    """But for the one group that taught a class only because its hashes left nothing else to."""
    normals = [m for m in more if m.label == "normal"]
    before = splits.assign_splits(rows, Shares())
    after = splits.assign_splits(rows + normals, Shares())[: len(rows)]
    moved = {m.group_id for m, old, new in zip(rows, before, after, strict=True) if old != new}
    taught = {m.group_id for m, old in zip(rows, before, strict=True) if old in ("train", "calibrate")}
    assert not moved or moved == taught


@given(officials)
def test_an_official_test_split_is_kept_and_gets_nothing_else(rows: list[Found]) -> None:
    official = {m.group_id for m in rows if m.official == "test"}
    for member, split in zip(rows, splits.assign_splits(rows, Shares()), strict=True):
        if official:
            assert (split == "test") == (member.group_id in official)


def test_shares_are_met() -> None:
    shares = Shares(calibrate=0.15, gate=0.1, test=0.2)
    found = splits.assign_splits([member("part", f"part/{i}", "normal", None) for i in range(4000)], shares)
    for split, share in {"calibrate": 0.15, "gate": 0.1, "test": 0.2, "train": 0.55}.items():
        assert found.count(split) / 4000 == pytest.approx(share, abs=0.03)


def test_an_official_test_of_one_class_takes_nothing_from_another() -> None:
    rows = [member("a", f"a/{i}", "normal", None) for i in range(200)] + [member("b", "b/0", "normal", "test")]
    assert splits.assign_splits(rows, Shares()) == [*splits.assign_splits(rows[:-1], Shares()), "test"]


def test_the_draw_is_pinned() -> None:
    """A changed hash would silently move images between train and test."""
    assert splits.fraction("split", "part/000") == pytest.approx(0.1601415529880672, abs=1e-12)


@given(groups, st.integers(1, 9))
def test_folds_are_in_range_and_independent_of_the_split(group: str, folds: int) -> None:
    assert 0 <= splits._fold_of(group, folds) < folds
    assert splits.fraction("fold", group) != splits.fraction("split", group)


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(DataError, match=r"data\.shares.*below 1"):
        splits.assign_splits([], Shares(calibrate=0.5, gate=0.3, test=0.2))
