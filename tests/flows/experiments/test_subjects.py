"""Another draw of a class's normals."""

from pathlib import Path

import pandas as pd

from flows.experiments.subjects import Subject, redrawn


def subject() -> Subject:
    rows = []
    for group in range(40):
        split = "train" if group < 24 else "calibrate" if group < 32 else "test"
        rows += [{"group_id": f"tile {group}", "split": split, "label": "normal", "exposure": e} for e in range(3)]
    rows += [{"group_id": "cracked", "split": "test", "label": label, "exposure": 0} for label in ("defect", "normal")]
    return Subject("tiles", pd.DataFrame(rows), Path())


def test_groups_stay_whole_splits_keep_their_size_and_defects_their_place() -> None:
    first, others = subject(), [redrawn(subject(), draw).rows for draw in (1, 2)]
    for rows in others:
        assert (rows.groupby("group_id")["split"].nunique() == 1).all()
        assert rows["split"].value_counts().to_dict() == first.rows["split"].value_counts().to_dict()
        assert set(rows.loc[rows["group_id"] == "cracked", "split"]) == {"test"}
        assert list(rows["group_id"]) == list(first.rows["group_id"])
    different = [sum(rows["split"] != first.rows["split"]) for rows in others]
    assert min(different) > 20
    assert not others[0].equals(others[1])


def test_draw_0_is_the_manifests_own_and_a_draw_is_always_the_same() -> None:
    assert redrawn(subject(), 0).rows.equals(subject().rows)
    assert redrawn(subject(), 3).rows.equals(redrawn(subject(), 3).rows)
