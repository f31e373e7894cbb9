"""Which rows a fit may learn from, and which it may judge.

A class with few normals can't afford a held-out set that is large enough for a threshold. Its shipped fit, `full`,
learns from train and calibrate; its threshold comes from fits `fold-0` .. that each left some out and judge just those.
A class with many normals learns from train and is judged on calibrate. Networks and priors may serve both kinds.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.core.config import Calibration, Score
from pvqae.core.errors import DataError
from pvqae.datasets.splits import fold_of

FULL = "full"
HELD_OUT = -1  # in column `fold`: the class is judged on its calibrate split


def assign(rows: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """`rows` (normals of train and calibrate) with a column `fold`."""
    count = rows.groupby("category")["category"].transform("size")
    fold = np.array([fold_of(group, calibration.folds) for group in rows["group_id"]], dtype=np.int64)
    return rows.assign(fold=np.where(count < calibration.kfold_below, fold, HELD_OUT))


def names(rows: pd.DataFrame) -> list[str]:
    """The fits that rows with a column `fold` need: `full`, then one per fold."""
    return [FULL, *(f"fold-{k}" for k in sorted(set(rows["fold"]) - {HELD_OUT}))]


def of_networks(rows: pd.DataFrame, score: Score) -> list[str]:
    """The fits that need a network of their own. Where the image score reads the memory alone, a network can't move
    a threshold, so none is trained per fold: the memory and its statistics still are fitted per fold.
    """
    return [FULL] if score.recon == "memory" and score.fusion == "recon" else names(rows)


def check(rows: pd.DataFrame) -> None:
    """Every fit must learn each class from two groups at least: a part is judged by what the others taught.

    Raises `DataError` naming the class, the fit and what was found.
    """
    for fit in names(rows):
        seen = rows[learns(rows, fit)].groupby("category")["group_id"].nunique()
        for category in sorted(set(rows["category"])):
            if seen.get(category, 0) < 2:
                raise DataError(
                    f"{category}, {fit}: expected training normals of at least 2 groups (parts), found "
                    f"{seen.get(category, 0)}; add images of other parts, or lower calibration.folds"
                )


def _number(fit: str) -> int:
    return HELD_OUT if fit == FULL else int(fit.removeprefix("fold-"))


def learns(rows: pd.DataFrame, fit: str) -> NDArray[np.bool_]:
    """The rows that `fit` learns from."""
    held_out = (rows["fold"] == HELD_OUT).to_numpy()
    others = (rows["fold"] != _number(fit)).to_numpy()
    return np.where(held_out, (rows["split"] == "train").to_numpy(), others)


def judges(rows: pd.DataFrame, fit: str) -> NDArray[np.bool_]:
    """The normals that `fit` sets thresholds on: it has not seen them. Over all fits, each such row once."""
    mine = (rows["fold"] == _number(fit)).to_numpy()
    return mine & (~learns(rows, fit))
