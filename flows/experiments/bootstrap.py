"""Intervals of detection figures: groups (physical parts) are drawn again with replacement, images follow their group.

n images; G groups; D draws; K bins. A draw is a weight per image: how often its group was drawn. Groups with and
without a defect are drawn apart, so that every draw has both. All detectors and seeds of a class see the same draws,
hence differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.core import seeding
from pvqae.evaluation.metrics import PixelCounts, pairs_won, pixel_aupro, pixel_auroc, pixel_f1_max

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
DRAWS = 1000
STRICT = 0.05  # the false-positive rate up to which the second AUPRO goes
PIXEL_FIGURES = ("pixel_auroc", "aupro", "aupro_05", "pixel_f1")
BINS = 4096  # of pixel histograms, of about equal weight: the error is far below the interval


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def weights(groups: Sequence[str], defect: Bools, draws: int = DRAWS, seed: int = 0, name: str = "") -> Floats:
    """Return how often each image counts in each draw, D x n. `name` is the class: other classes, other draws."""
    number, names = pd.factorize(np.asarray(groups, dtype=object))
    spoilt = np.bincount(number, weights=defect, minlength=len(names)) > 0
    rng = seeding.numpy_generator(seed, "bootstrap", name)
    counts = np.zeros((draws, len(names)))
    for members in (np.flatnonzero(spoilt), np.flatnonzero(~spoilt)):
        if len(members):
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    drawn: Floats = counts[:, number]
    return drawn


def image_aurocs(defect: Bools, scores: Floats, weights_Dn: Floats) -> Floats:
    """Return the image AUROC of each draw, D; NaN where a draw lacks defects or normals."""
    hits, alarms = weights_Dn[:, defect], weights_Dn[:, ~defect]
    pairs = hits.sum(1) * alarms.sum(1)
    won = pairs_won(scores[defect], scores[~defect], hits, alarms)
    shares: Floats = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return shares


def pixel_figures(counts: Sequence[PixelCounts], weights_Dn: Floats) -> dict[str, Floats]:
    """Return PIXEL_FIGURES of each draw, D each; NaN where not defined."""
    tables = zip(*(weights_Dn @ table for table in _dense(counts)), strict=True)
    draws = [
        (
            pixel_auroc(normal, defect),
            pixel_aupro(normal, region),
            pixel_aupro(normal, region, STRICT),
            pixel_f1_max(normal, defect),
        )
        for normal, defect, region in tables
    ]
    return dict(zip(PIXEL_FIGURES, np.array(draws, dtype=np.float64).T, strict=True))


def _dense(counts: Sequence[PixelCounts], most: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Return normal, defect and region counts, n x K each, neighbouring bins joined until about `most` are left.

    Each joined bin holds about an equal share of the normal pixels and of the regions' weight together.
    """
    occupied, inverse = np.unique(np.concatenate([c.bins for c in counts]), return_inverse=True)
    normal = np.bincount(inverse, weights=np.concatenate([c.normal for c in counts]))
    region = np.bincount(inverse, weights=np.concatenate([c.region for c in counts]))
    share = normal / max(1.0, normal.sum()) + region / max(1e-12, region.sum())
    joined = np.minimum((np.cumsum(share) - share / 2) / 2 * most, most - 1).astype(np.int64)
    columns = np.unique(joined, return_inverse=True)[1]
    tables = np.zeros((3, len(counts), int(columns.max()) + 1))
    for image, found in enumerate(counts):
        place = columns[np.searchsorted(occupied, found.bins)]
        for table, values in zip(tables, (found.normal, found.defect, found.region), strict=True):
            np.add.at(table[image], place, values)
    return tables[0], tables[1], tables[2]


def interval(value: float, draws: Floats) -> Interval:
    """Return the central 95 % of the draws that are defined."""
    low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Interval(value, float(low), float(high))
