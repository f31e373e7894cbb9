"""What the bench of INT8 prints and when it fails."""

import pandas as pd
import pytest

from flows.experiments import limits
from pvqae.core.errors import ParityError


def table(loss: float) -> pd.DataFrame:
    both = {
        "image_auroc": (0.9, 0.9 - loss),
        "pixel_auroc": (0.8, 0.81),
        "aupro": (None, None),
        "milliseconds": (50, 40),
    }
    row = {f"{name}_{p}": x for name, pair in both.items() for p, x in zip(("float32", "int8"), pair, strict=True)}
    return pd.DataFrame(
        [{"class": "nut", "seed": 0} | row, {"class": "nut", "seed": 1} | row | {"image_auroc_int8": 0.9}]
    )


def test_the_page_has_both_figures_of_every_class() -> None:
    last = limits.precisions_page(table(0.02)).splitlines()[-1]
    assert last == "| nut | 0.9000 → 0.8900 | 0.8000 → 0.8100 | - | 50 → 40 |"


def test_the_mean_over_the_seeds_is_what_is_limited() -> None:
    limits.insist_on_precision(table(0.019), 0.01)
    with pytest.raises(ParityError, match=r"int8 lowers the image AUROC of nut by 0.0150; allowed 0.01"):
        limits.insist_on_precision(table(0.03), 0.01)
    with pytest.raises(ParityError):
        limits.insist_on_precision(table(float("nan")).assign(image_auroc_int8=float("nan")), 0.01)
