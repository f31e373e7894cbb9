"""Who may learn from which image: the split of each group, and the folds of classes with few normals.

Membership is a hash of the group, so adding images never moves an old one.

A class with few normals can't afford a held-out set that is large enough for a threshold. Its shipped fit, `full`,
learns from train and calibrate; its threshold comes from fits `fold-0` .. that each left some out and judge just those.
A class with many normals learns from train and is judged on calibrate. One with hardly any has no folds either: a fold
of two images says nothing of a fit of three, so calibration judges within the shipped fit. Networks and priors may
serve all kinds.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.core.config import Calibration, Shares
from pvqae.core.errors import DataError
from pvqae.datasets.layouts import Found

FULL = "full"
_HELD_OUT = -1  # in column `fold`: the class is judged on its calibrate split
_FEW = -2  # every fit learns from the class, none judges it


def fraction(salt: str, group_id: str) -> float:
    """Return a number in [0, 1), fixed by the two texts alone; the salt makes independent draws for the same group."""
    return int(hashlib.sha256(f"{salt}\0{group_id}".encode(errors="surrogateescape")).hexdigest()[:13], 16) / 16**13


def _fold_of(group_id: str, folds: int) -> int:
    """Fold 0 .. folds-1 of a group, independent of its split."""
    return int(fraction("fold", group_id) * folds)


def _of_normals(group_id: str, shares: Shares, has_test: bool, arrived: bool) -> str:
    draw = fraction("split", group_id)
    gate = 0.0 if arrived else shares.gate
    bounds = [("calibrate", shares.calibrate), ("gate", gate), ("test", 0.0 if has_test else shares.test)]
    for split, share in bounds:
        if draw < share:
            return split
        draw -= share
    return "train"


def assign_splits(found: Sequence[Found], shares: Shares) -> list[str]:
    """Return the split of each image, in order: train, calibrate, gate or test.

    A group is never divided. One with a defect, or with an image of an official test split, is test as a whole: the
    other exposures of a defective part are not normal. One with an image that the user set aside for the gate is gate.
    All others go by the hash of their group; they reach test only in categories without an official one, and gate only
    if they did not arrive later: what arrives has its share of the gate set aside before anything judges it.
    Where the hashes leave a class nothing to learn from, it learns from the group with the highest one.
    Raises `DataError` if the shares leave nothing for train.
    """
    if shares.calibrate + shares.gate + shares.test >= 1:
        raise DataError(f"data.shares: expected a sum below 1, found {shares}; lower one in params.yaml")
    has_test = {f.category for f in found if f.official == "test"}
    fixed = {f.group_id: "gate" for f in found if f.official == "gate"}
    fixed |= {f.group_id: "test" for f in found if f.official == "test" or (f.label == "defect" and not f.official)}
    chosen = [
        fixed.get(f.group_id) or _of_normals(f.group_id, shares, f.category in has_test, f.official == "arrived")
        for f in found
    ]
    return _with_a_teacher(found, chosen, fixed)


def _with_a_teacher(found: Sequence[Found], chosen: list[str], fixed: Mapping[str, str]) -> list[str]:
    """Return the splits with one group of each class that would have none in train or calibrate moved there."""
    taught = {f.category for f, split in zip(found, chosen, strict=True) if split in ("train", "calibrate")}
    free: dict[str, set[str]] = {}
    for f in found:
        if f.category not in taught and f.group_id not in fixed and f.label == "normal":
            free.setdefault(f.category, set()).add(f.group_id)
    # The nearest to train: what arrives later hardly ever has to take its place.
    moved = {max(groups, key=lambda group: fraction("split", group)) for groups in free.values()}
    return ["train" if f.group_id in moved else split for f, split in zip(found, chosen, strict=True)]


def assign_folds(rows: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """Return `rows` (normals of train and calibrate) with a column `fold`."""
    count = rows.groupby("category")["category"].transform("size")
    fold = np.array([_fold_of(group, calibration.folds) for group in rows["group_id"]], dtype=np.int64)
    kept = np.where(count < calibration.kfold_below, fold, _HELD_OUT)
    return rows.assign(fold=np.where(count < calibration.promise_from, _FEW, kept))


def few(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which rows (with a column `fold`) are of classes with too few normals for a fold or a promised rate."""
    return (rows["fold"] == _FEW).to_numpy()


# Of a network without a training: not an empty file, of which DVC warns.
NO_HISTORY = '{"fold": "full", "phase": "untrained", "step": 0}\n'


def fits(rows: pd.DataFrame) -> list[str]:
    """Return the fits that rows with a column `fold` need: `full`, then one per fold."""
    return [FULL, *(f"fold-{k}" for k in sorted(set(rows["fold"]) - {_HELD_OUT, _FEW}))]


def _number(fit: str) -> int:
    return _HELD_OUT if fit == FULL else int(fit.removeprefix("fold-"))


def learns(rows: pd.DataFrame, fit: str) -> NDArray[np.bool_]:
    """Return the rows that `fit` learns from."""
    held_out = (rows["fold"] == _HELD_OUT).to_numpy()
    others = (rows["fold"] != _number(fit)).to_numpy()
    return np.where(held_out, (rows["split"] == "train").to_numpy(), others)


def judges(rows: pd.DataFrame, fit: str) -> NDArray[np.bool_]:
    """Return the normals that `fit` sets thresholds on: it has not seen them. Over all fits, each such row once."""
    mine = (rows["fold"] == _number(fit)).to_numpy()
    return mine & (~learns(rows, fit))
