"""Has what arrives moved away from the trusted normals? Figures with limits that normals themselves set. Pure.

A limit from a table assumes independent images; normals are often several photographs of one part. Here normals are
divided at random, whole groups at a time, many times over: what the two sides differ by is chance.
N normals of G groups; n images of the batch; B random divisions; K points where distributions are compared.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from pvqae.core import seeding
from pvqae.drift.profile import GROUP, SCORE

_Numbers = NDArray[np.float64]

ABOVE = "share above threshold"
_BINS = 10  # of the population stability index, equally filled by normals
SMALLEST_GROUPS = 8  # of normals, and at least as many in a batch: from fewer the spread of parts is not known


@dataclass(frozen=True)
class _Figure:
    """One feature of a batch against normals; `ks` above `limit` is drift."""

    name: str
    ks: float  # largest distance of the cumulative shares, 0 .. 1; of a score only where the batch is higher
    limit: float  # what chance alone exceeds, in any of the features, at the set rate
    p_value: float  # share of draws in which any feature differed as much as this one
    psi: float  # population stability index over _BINS bins
    psi_limit: float  # of 95 % of the draws: the usual 0.1 and 0.25 are exceeded by chance in small batches
    median: float
    normal_median: float
    shift: float  # of the median, in deviations of normals

    @property
    def drifted(self) -> bool:
        return self.ks > self.limit


@dataclass(frozen=True)
class _Share:
    """Images above the threshold."""

    above: int
    n: int
    interval_95: tuple[float, float]  # Clopper and Pearson
    normal: float  # of the normals themselves
    excess: float  # share - normal
    limit: float  # of the excess
    p_value: float

    @property
    def drifted(self) -> bool:
        return self.excess > self.limit


@dataclass(frozen=True)
class Comparison:
    """All figures of one batch."""

    n: int
    n_normal: int
    n_groups: int
    detectable_shift: float  # smallest shift of a bell-shaped feature, in deviations, that exceeds the widest limit
    figures: tuple[_Figure, ...]
    share: _Share

    @property
    def drifted(self) -> tuple[str, ...]:
        """The features that drifted, farthest beyond its limit first."""
        ratios = {f.name: f.ks / f.limit for f in self.figures if f.drifted}
        if self.share.drifted:
            ratios[ABOVE] = self.share.excess / self.share.limit
        return tuple(sorted(ratios, key=lambda name: -ratios[name]))


def _names(normals: pd.DataFrame) -> list[str]:
    """Return the features of a table."""
    return [str(name) for name in normals.columns if name != GROUP]


def smallest(normals: pd.DataFrame, least: int) -> int:
    """Return how many images a batch needs: `least`, or more where normals are many photographs of each part.

    The batch may be, too. Of mtsd's tiles, six photographs each, 30 images raised 8 % false alarms, 54 raised 4 %.
    """
    per_group = len(normals) / max(1, normals[GROUP].nunique())
    return max(least, math.ceil(SMALLEST_GROUPS * per_group))


def compare(
    normals: pd.DataFrame, batch: pd.DataFrame, threshold: float, rate: float = 0.05, draws: int = 1000, seed: int = 0
) -> Comparison:
    """Compare a `batch` (n rows of features) with `normals` (N rows, and their `GROUP`).

    An undrifted batch is called drifted at most at `rate`, over all features together (Westfall and Young's max-T).
    """
    null = Null(normals, len(batch), threshold, rate, draws, seed)
    return null.judge(batch)


class Null:
    """What chance does to batches of `n` images; made once for many batches of one size."""

    def __init__(self, normals: pd.DataFrame, n: int, threshold: float, rate: float, draws: int, seed: int) -> None:
        self._normals, self._threshold, self._n = normals, threshold, n
        self._rows = [np.flatnonzero(normals[GROUP] == group) for group in pd.unique(normals[GROUP])]
        rng = seeding.numpy_generator(seed, "drift")
        size = len(normals) / len(self._rows)
        ours, theirs, factor = _splits(rng, draws, len(self._rows), n / size)
        self._psi_limits: dict[str, float] = {}
        distances = {}
        for name in _names(normals):
            cumulative = self._per_group(normals[name], np.unique(normals[name]))
            gap = _shares(ours, cumulative) - _shares(theirs, cumulative)
            distances[name] = factor * _distance(name, gap)
            bins = np.diff(self._per_group(normals[name], _edges(normals[name])), prepend=0, axis=1)
            self._psi_limits[name] = float(np.quantile(_psi(ours @ bins, theirs @ bins), 0.95))
        above = self._per_group(-normals[SCORE], np.array([np.nextafter(-threshold, -np.inf), np.inf]))
        distances[ABOVE] = factor * (_shares(theirs, above) - _shares(ours, above))[:, 0]
        scales = {name: max(float(np.quantile(v, 0.95)), self._least(name, n / size)) for name, v in distances.items()}
        self._scales = scales
        largest = np.max([v / scales[k] for k, v in distances.items()], axis=0)
        self._largest, self._limit = largest, float(np.quantile(largest, 1 - rate))

    def _least(self, name: str, parts: float) -> float:
        """Return the least limit of a figure.

        A feature that is constant in normals, or a share that is 0 in them, would have the limit 0.
        """
        if name != ABOVE:
            return float(1.36 * np.sqrt(1 / self._n + 1 / len(self._normals)))  # of independent images, at 5 %
        from scipy.stats import binom  # half a second, which a calibration need not wait for

        groups, normal = len(self._rows), self._normal_share()
        count = max(1, round(parts))
        rate = (normal * groups + 1) / (groups + 2)  # few parts above the threshold: a rate is not known better
        return max(float(binom.ppf(0.95, count, rate)) / count - normal, 1e-9)

    def _normal_share(self) -> float:
        return float((self._normals[SCORE] > self._threshold).mean())

    def _per_group(self, values: pd.Series, points: _Numbers) -> _Numbers:
        """Return of each group how many values are at most each point, G x K."""
        array = values.to_numpy(np.float64)
        return np.stack([np.searchsorted(np.sort(array[rows]), points, side="right") for rows in self._rows]).astype(
            np.float64
        )

    def _p(self, ratio: float) -> float:
        return float((1 + (self._largest >= ratio).sum()) / (1 + len(self._largest)))

    def judge(self, batch: pd.DataFrame) -> Comparison:
        figures = tuple(self._figure(name, batch[name].to_numpy(np.float64)) for name in _names(self._normals))
        widest = min(0.999, max(f.limit for f in figures))
        return Comparison(
            len(batch),
            len(self._normals),
            len(self._rows),
            float(2 * ndtri((1 + widest) / 2)),
            figures,
            self._share(batch[SCORE].to_numpy(np.float64)),
        )

    def _figure(self, name: str, values: _Numbers) -> _Figure:
        normal = self._normals[name].to_numpy(np.float64)
        distance = _ks(name, normal, values)
        edges = _edges(self._normals[name])
        counts = [np.diff(np.searchsorted(np.sort(v), edges, side="right"), prepend=0)[None] for v in (normal, values)]
        middle, spread = float(np.median(normal)), max(float(normal.std()), 1e-9)
        return _Figure(
            name,
            distance,
            self._limit * self._scales[name],
            self._p(distance / self._scales[name]),
            float(_psi(counts[0], counts[1])[0]),
            self._psi_limits[name],
            float(np.median(values)),
            middle,
            (float(np.median(values)) - middle) / spread,
        )

    def _share(self, scores: _Numbers) -> _Share:
        from scipy.stats import binomtest

        above, n = int((scores > self._threshold).sum()), len(scores)
        interval = binomtest(above, n).proportion_ci(0.95)
        normal = self._normal_share()
        excess = above / n - normal
        ratio = excess / self._scales[ABOVE]
        limit = self._limit * self._scales[ABOVE]
        return _Share(above, n, (float(interval.low), float(interval.high)), normal, excess, limit, self._p(ratio))


def _splits(rng: np.random.Generator, draws: int, groups: int, wanted: float) -> tuple[_Numbers, _Numbers, float]:
    """Return the groups on each side of random divisions, B x G twice, and what to multiply their distances by.

    `wanted` groups are in a batch. Half of the normals' groups at most can stand for it; a larger batch varies less.
    """
    count = max(1, min(round(wanted), groups // 2))
    theirs = (rng.random((draws, groups)).argsort(axis=1) < count).astype(np.float64)
    return 1 - theirs, theirs, float(np.sqrt((1 / groups + 1 / max(wanted, count)) / (1 / groups + 1 / count)))


def _ks(name: str, normal: _Numbers, values: _Numbers) -> float:
    """Return Kolmogorov and Smirnov's distance of two samples, one-sided for the score."""
    points = np.unique(np.concatenate([normal, values]))
    below = [np.searchsorted(np.sort(v), points, side="right") / len(v) for v in (normal, values)]
    return float(_distance(name, below[0] - below[1]))


def _distance(name: str, gap: _Numbers) -> _Numbers:
    """Return the largest gap of cumulative shares; of the score only where the batch is higher.

    Cross-fitted normals score a little higher than new ones, whose model knows more parts: only up is drift.
    """
    found: _Numbers = gap.max(axis=-1) if name == SCORE else np.abs(gap).max(axis=-1)
    return found


def _shares(drawn: _Numbers, cumulative: _Numbers) -> _Numbers:
    """Return the cumulative shares of each draw, B x K."""
    counts = drawn @ cumulative
    found: _Numbers = counts / counts[:, -1:]
    return found


def _edges(values: pd.Series) -> _Numbers:
    """Return the upper edges of bins that normals fill equally; equal quantiles are one bin."""
    inner = np.unique(np.quantile(values.to_numpy(np.float64), np.arange(1, _BINS) / _BINS))
    return np.append(inner, np.inf)


def _psi(normal: _Numbers, batch: _Numbers) -> _Numbers:
    """Sum (p - q) ln(p / q) over bin counts (.., bins), half an image added to each so that none is empty."""
    p, q = ((c + 0.5) / (c + 0.5).sum(axis=-1, keepdims=True) for c in (normal, batch))
    found: _Numbers = ((p - q) * np.log(p / q)).sum(axis=-1)
    return found
