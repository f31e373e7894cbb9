"""The AUROC is that of a well-known library, ties included."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pvqae.calibration.thresholds import auroc


@pytest.mark.parametrize("values", [3, 10, 10_000])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_it_is_the_librarys(values: int, share: float) -> None:
    rng = np.random.default_rng(values)
    scores = rng.integers(0, values, 500).astype(np.float32)
    defect = rng.random(500) < share
    defect[:2] = True, False
    assert auroc(defect, scores) == pytest.approx(roc_auc_score(defect, scores), abs=1e-12)


def test_ties_count_half_and_order_decides() -> None:
    defect = np.array([True, False])
    assert [auroc(defect, np.array(x)) for x in ([1.0, 1.0], [2.0, 1.0], [1.0, 2.0])] == [0.5, 1.0, 0.0]
