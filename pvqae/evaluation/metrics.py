"""Detection figures of images and pixels.

Image figures are exact. Pixel figures stream: a map adds to histograms and is forgotten, so memory does not grow with
the images (anomalib #372, #1651). Float32 has an order-preserving integer form; its top 20 bits are the bin, which
needs no range beforehand and keeps values apart that differ by more than 1 part in 2,048. Values of one bin are ties.

Every figure is None where it is not defined: without a normal, without a defect, without a mask.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as connected_regions

from pvqae.calibration.thresholds import auroc, is_defect

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BITS = 20
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class _Rates:
    """Shares in [0, 1] at one threshold: of normals called defect, of defects called normal."""

    false_alarm: float | None
    miss: float | None


def rates(defect: Bools, scores: Floats, threshold: float) -> _Rates:
    """Return the false-alarm and miss rate of N images; `defect` is their label, N bools."""
    called = is_defect(scores, threshold)
    normal = ~defect
    return _Rates(
        false_alarm=float(called[normal].mean()) if normal.any() else None,
        miss=float((~called[defect]).mean()) if defect.any() else None,
    )


def pairs_won(defects_d: Floats, normals_n: Floats, hits_Dd: Floats, counts_Dn: Floats) -> Floats:
    """Count the pairs of a defect and a normal in which the defect scores higher, ties half, in each of D resamples.

    `hits_Dd` and `counts_Dn` say how often each defect and each normal is drawn; divided by the number of pairs, the
    result is the image AUROC of a resample. By ranks, since pairs grow with the images' square, and exact: all are sums
    of whole numbers.
    """
    order = np.argsort(normals_n)
    below = np.pad(np.cumsum(counts_Dn[:, order], axis=1), ((0, 0), (1, 0)))
    first, last = (np.searchsorted(normals_n[order], defects_d, side) for side in ("left", "right"))
    won: Floats = (hits_Dd * (below[:, first] + below[:, last])).sum(1) / 2
    return won


def image_auroc(defect: Bools, scores: Floats) -> float | None:
    """Return the probability that a defect scores higher than a normal, ties counting half."""
    values = _finite(scores)
    return auroc(defect, values) if defect.any() and not defect.all() else None


def roc(defect: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates, one point per distinct score from the highest down, starting at (0, 0).

    Needs at least one normal and one defect.
    """
    hits, alarms = _counts_from_the_top(defect, scores)
    return alarms / alarms[-1], hits / hits[-1]


def f1_max(defect: Bools, scores: Floats) -> float | None:
    """Return the best F1 of the defects over all thresholds."""
    if not defect.any():
        return None
    hits, alarms = _counts_from_the_top(defect, scores)
    return float(np.max(2 * hits / (hits + alarms + hits[-1])))


def _counts_from_the_top(defect: Bools, scores: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(-_finite(scores), kind="stable")
    ends = np.append(np.flatnonzero(np.diff(np.asarray(scores)[order])), len(order) - 1)
    hits = np.cumsum(defect[order])[ends]
    alarms = np.cumsum(~defect[order])[ends]
    return np.append(0.0, hits), np.append(0.0, alarms)


class PixelCounts(NamedTuple):
    """One map's histogram, occupied bins only; the sum over images is what pixel figures are made of."""

    bins: NDArray[np.uint32]  # ascending: a larger value never has a smaller bin
    normal: Floats  # pixels outside the mask, per bin
    defect: Floats  # pixels inside
    region: Floats  # the same, each connected region weighing 1

    def coarser(self, bits: int = 4) -> "PixelCounts":
        """Return the counts in bins 2 ** `bits` as wide, 0.8 % of a value by default: many maps then fit in memory."""
        bins, first = np.unique(self.bins >> np.uint32(bits), return_index=True)
        return PixelCounts(bins, *(np.add.reduceat(counts, first) for counts in self[1:]))


def count(anomaly_map: NDArray[np.floating], mask: Bools) -> PixelCounts:
    """Count an (H, W) map, higher is more anomalous, under its (H, W) mask, True on the defect.

    Raises `ValueError` for a map that is not finite or not of the mask's size.
    """
    if anomaly_map.shape != mask.shape:
        raise ValueError(f"the map is {anomaly_map.shape} and its mask {mask.shape}; expected the same size")
    bins, size = _bins(_finite(anomaly_map)), 2**_BITS
    normal, defect = (np.bincount(bins[where], minlength=size) for where in (~mask, mask))
    occupied = np.flatnonzero(normal + defect)
    region = np.zeros(size)
    if mask.any():
        region += np.bincount(bins[mask], weights=_region_weights(mask), minlength=size)
    counts = (every[occupied].astype(np.float64) for every in (normal, defect, region))
    return PixelCounts(occupied.astype(np.uint32), *counts)


def pixel_auroc(normal: Floats, defect: Floats) -> float | None:
    """Return the AUROC of pixels counted per bin, bins ascending."""
    if not normal.any() or not defect.any():
        return None
    return float(np.trapezoid(_share_above(defect), _share_above(normal)))


def pixel_aupro(normal: Floats, region: Floats, limit: float = 0.3) -> float | None:
    """Return the mean overlap per connected defect region, over false-positive rates 0 to `limit`, in [0, 1].

    Regions are connected through all 8 neighbours. Normal pixels are all pixels outside the masks, of good and of
    defective images.
    """
    if not normal.any() or not region.any():
        return None
    x, y = _share_above(normal), _share_above(region)
    inside = x < limit
    x_cut = np.append(x[inside], limit)
    y_cut = np.append(y[inside], np.interp(limit, x, y))
    return min(1.0, float(np.trapezoid(y_cut, x_cut)) / limit)


def pixel_f1_max(normal: Floats, defect: Floats) -> float | None:
    """Return the best F1 of pixels counted per bin, bins ascending, over all thresholds between bins."""
    if not defect.any():
        return None
    hits, alarms = np.cumsum(defect[::-1]), np.cumsum(normal[::-1])
    return float(np.max(2 * hits / (hits + alarms + hits[-1])))


class PixelMetrics:
    """Pixel AUROC, AUPRO and F1 of any number of maps in 25 MB."""

    def __init__(self) -> None:
        self._normal, self._defect, self._region = np.zeros((3, 1 << _BITS))
        self._called = np.zeros(3, dtype=np.int64)  # pixels marked in the mask, marked outside, missed

    def add(self, anomaly_map: NDArray[np.floating], mask: Bools) -> None:
        """Add a map and its mask; arguments and errors of `count`."""
        self.add_counts(count(anomaly_map, mask))

    def add_counts(self, counts: PixelCounts) -> None:
        """Add what `count` counted."""
        self._normal[counts.bins] += counts.normal
        self._defect[counts.bins] += counts.defect
        self._region[counts.bins] += counts.region

    def auroc(self) -> float | None:
        """Return the AUROC over all pixels of all maps."""
        return pixel_auroc(self._normal, self._defect)

    def aupro(self, limit: float = 0.3) -> float | None:
        """Return the AUPRO over all regions of all maps, see `pixel_aupro`."""
        return pixel_aupro(self._normal, self._region, limit)

    def compare(self, marked: Bools, mask: Bools) -> None:
        """Add the pixels that a fixed threshold marks in an image, for `f1`."""
        self._called += (marked & mask).sum(), (marked & ~mask).sum(), (mask & ~marked).sum()

    def f1(self) -> float | None:
        """Return the F1 of the marked pixels of all compared images (SegF1 of MVTec AD 2); None without a defect."""
        hits, alarms, misses = map(int, self._called)
        return 2 * hits / (2 * hits + alarms + misses) if hits + misses else None

    def f1_max(self) -> float | None:
        """Return the best F1 of the masked pixels of all maps, over all thresholds between bins."""
        return pixel_f1_max(self._normal, self._defect)


def _region_weights(mask: Bools) -> Floats:
    """Return 1 / size of its region for each masked pixel, so that all regions weigh the same."""
    regions, _ = connected_regions(mask, structure=_EIGHT_NEIGHBOURS)
    members = regions[mask]
    return np.asarray(1.0 / np.bincount(members)[members], dtype=np.float64)


def _share_above(histogram: NDArray[np.generic]) -> Floats:
    """Return the share of the counts in or above each occupied bin, from 0 at the top to 1."""
    total = np.cumsum(np.asarray(histogram, dtype=np.float64)[::-1])
    return np.append(0.0, total / total[-1])


def _bins(values: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Return the bin of each value; a larger value never has a smaller bin. Adding 0 makes -0.0 and 0.0 one value."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return np.asarray(ordered >> (32 - _BITS), dtype=np.uint32)


def _finite(values: NDArray[np.floating]) -> NDArray[np.floating]:
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite; expected finite numbers")
    return values
