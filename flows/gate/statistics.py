"""The gate's figures with their uncertainty. Pure: scores in, intervals out; the same input gives the same figures.

G groups (one physical part each): its exposures and the defects drawn on them are not independent, so groups are
resampled, not images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from pvqae.core.config import Gate
from pvqae.evaluation.metrics import PixelCounts, image_auroc, pairs_won, pixel_aupro

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]

_AT_ONCE = 4_000_000  # numbers of draws times images
_POWER = 0.95  # of passing, at which the number of groups that an equal challenger needs is given


@dataclass(frozen=True)
class Comparison:
    """Image AUROC, or AUPRO, of champion and challenger on the same images.

    `low` and `high` bound the difference one-sided.
    """

    champion: float
    challenger: float
    low: float
    high: float
    error: float  # standard error of the difference
    groups: int
    defects: int

    @property
    def difference(self) -> float:
        """Challenger minus champion."""
        return self.challenger - self.champion

    def groups_needed(self, margin: float, confidence: float) -> int:
        """Return how many groups an equal challenger needs to pass in `_POWER` of cases, as these scores vary."""
        per_group = self.error * math.sqrt(self.groups)
        return math.ceil((float(ndtri(confidence) + ndtri(_POWER)) * per_group / margin) ** 2)


@dataclass(frozen=True)
class Alarms:
    """False alarms on n normals of `groups` parts; `low` bounds the true rate from below, one-sided."""

    rate: float
    n: int
    groups: int
    low: float

    @classmethod
    def of(cls, scores: _Floats, groups: Sequence[str], threshold: float, confidence: float) -> Self:
        """Count the false alarms of N > 0 normals.

        The binomial bound counts groups, not images: exposures of one part are raised together.
        """
        parts = len(set(groups))
        rate = float((scores > threshold).mean())
        low = float(betaincinv(rate * parts, parts - rate * parts + 1, 1 - confidence)) if rate else 0.0
        return cls(rate, len(scores), parts, low)


@lru_cache(maxsize=8)
def _resamples(groups: int, draws: int, seed: int) -> _Floats:
    """Draw `groups` with replacement; return how often each is drawn, draws x groups."""
    drawn = np.random.default_rng(seed).integers(groups, size=(draws, groups)) + groups * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * groups).reshape(draws, groups).astype(np.float64)


def compare(
    champion: _Floats,
    challenger: _Floats,
    defect: _Bools,
    groups: Sequence[str],
    confidence: float,
    draws: int,
    seed: int = 0,
) -> Comparison | None:
    """Bootstrap the difference in image AUROC, paired, over `draws` resamples of the groups.

    `champion`, `challenger` are the N scores of the same images, `defect` their labels. `confidence` is that of each
    of the two one-sided bounds. None without a normal or without a defect.
    """
    first, second = image_auroc(defect, champion), image_auroc(defect, challenger)
    if first is None or second is None:
        return None
    names, numbers = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    found = []
    for times in np.array_split(_resamples(len(names), draws, seed), max(1, draws * len(numbers) // _AT_ONCE)):
        hits, normals = times[:, numbers[defect]], times[:, numbers[~defect]]
        won = [pairs_won(scores[defect], scores[~defect], hits, normals) for scores in (challenger, champion)]
        pairs = hits.sum(1) * normals.sum(1)
        found.append(((won[0] - won[1]) / np.maximum(pairs, 1))[pairs > 0])
    return _between(first, second, np.concatenate(found), confidence, len(names), int(defect.sum()))


def _between(first: float, second: float, drawn: _Floats, confidence: float, groups: int, defects: int) -> Comparison:
    low, high = np.quantile(drawn, [1 - confidence, confidence])
    return Comparison(first, second, float(low), float(high), float(drawn.std()), groups, defects)


def compare_maps(
    champion: Sequence[PixelCounts], challenger: Sequence[PixelCounts], groups: Sequence[str], limits: Gate
) -> Comparison | None:
    """Bootstrap the difference in AUPRO as `compare` does; the counts are of the maps of the same images.

    None without a masked defect.
    """
    names, numbers = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    times = np.vstack([np.ones(len(names)), _resamples(len(names), limits.draws, 0)])
    one, other = (_aupros(counts, numbers, times) for counts in (champion, challenger))
    if np.isnan([one[0], other[0]]).any():
        return None
    difference = other[1:] - one[1:]
    masked = sum(bool(counts.defect.any()) for counts in challenger)
    drawn = difference[np.isfinite(difference)]
    return _between(float(one[0]), float(other[0]), drawn, limits.confidence, len(names), masked)


def aupro(counts: Sequence[PixelCounts]) -> float | None:
    """Return the AUPRO of some images; None without a masked defect."""
    found = _aupros(counts, np.arange(len(counts)), np.ones((1, len(counts))))[0] if counts else np.nan
    return None if np.isnan(found) else float(found)


def _aupros(counts: Sequence[PixelCounts], numbers: NDArray[np.intp], times_DG: _Floats) -> _Floats:
    """Return the AUPRO of each draw, D, NaN where it has no masked defect; `numbers`: the group of each image."""
    bins = np.unique(np.concatenate([one.bins for one in counts]))
    normal, region = np.zeros((2, times_DG.shape[1], len(bins)))
    for group, one in zip(numbers, counts, strict=True):
        place = np.searchsorted(bins, one.bins)
        normal[group, place] += one.normal
        region[group, place] += one.region
    found = []
    for some in np.array_split(times_DG, max(1, len(times_DG) * len(bins) // _AT_ONCE)):
        found += [pixel_aupro(*both) for both in zip(some @ normal, some @ region, strict=True)]
    return np.array(found, dtype=np.float64)


def compared(
    champion: _Floats | None,
    challenger: _Floats,
    kinds: NDArray[np.str_],
    defect: _Bools,
    groups: Sequence[str],
    limits: Gate,
) -> dict[str, Any]:
    """Return the fields of `Measured` about detection: counts, and comparisons of all images and of each kind.

    A kind's defects are compared against all normals; `kinds` are the N images' kinds. None of it without a champion.
    """
    found = {"groups": len(set(groups)), "normals": int((~defect).sum()), "defects": int(defect.sum())}
    if champion is None:
        return {**found, "auroc": None, "kinds": {}}
    how, by_kind = (limits.confidence, limits.draws), {}
    for kind in sorted(set(kinds[defect].tolist())):
        kept = ~defect | (kinds == kind)
        own = [name for name, keep in zip(groups, kept, strict=True) if keep]
        if seen := compare(champion[kept], challenger[kept], defect[kept], own, *how):
            by_kind[kind] = seen
    return {**found, "auroc": compare(champion, challenger, defect, groups, *how), "kinds": by_kind}
