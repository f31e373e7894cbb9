"""What scores and maps say: thresholds from normals only, the card that explains them, decisions, and their limits.

The threshold is the k-th smallest of n scores of normals that the model has not seen, k = ceil((n+1)(1-rate)) (split
conformal prediction; Vovk et al. 2005): the chance that the next normal exceeds it is at most the target rate, for any
distribution of scores. Imports no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaincinv

from pvqae.core import config
from pvqae.core.errors import CalibrationError
from pvqae.samples import geometry

if TYPE_CHECKING:
    from pvqae.model.backbones import Spec

_RULE = "k-th smallest of n scores of unseen normals, k = ceil((n + 1) * (1 - target rate)); above it is a defect"


_FEW_RULE = (
    "highest score of normals, each judged by what the other parts taught, and as much above it as it is above their "
    "median; no rate can be promised of so few"
)
_PIXEL_RULE = (
    "lowest value that at most the target share of the pixels of unseen normals exceeds, every image weighing the "
    "same; above it a pixel is marked"
)
_RANKS = 1000  # values kept of a map, more densely the higher they are: shares are right to about 1 %
_CANDIDATES = 2048  # pixel thresholds that are compared
_DRAWS = 1000  # of the bootstrap


LEVEL_LIMIT = 0.98  # share of cells on one level above which the allocation has collapsed
USAGE_LIMIT = 0.05  # share of codes in use below which the codebook has collapsed


def is_defect(scores: NDArray[np.floating] | float, threshold: float) -> NDArray[np.bool_]:
    """Return the decision: True for a score strictly above the threshold.

    A threshold that is a normal's score passes that normal.
    """
    return np.asarray(np.asarray(scores) > threshold)


def auroc(defect_n: NDArray[np.bool_], score_n: NDArray[np.floating]) -> float:
    """Return the area under the ROC curve (Mann-Whitney) of N scores; `defect_n` is their label, N bools.

    It is the share of the pairs of a defect and a normal in which the defect scores higher, ties counting half. Needs
    at least one of each. Written out because scikit-learn takes half a second to import.
    """
    normal, defect = np.sort(score_n[~defect_n]), score_n[defect_n]
    below = np.searchsorted(normal, defect, "left").sum(dtype=np.int64)
    up_to = np.searchsorted(normal, defect, "right").sum(dtype=np.int64)
    return float((below + up_to) / 2 / (len(normal) * len(defect)))


@dataclass(frozen=True)
class _Threshold:
    """A threshold with what is known of its false-alarm rate."""

    value: float
    target_rate: float
    smallest_supported_rate: float  # 1 / (n + 1)
    interval_95: tuple[float, float]  # of the realised rate, over draws of the n normals
    n: int
    warnings: tuple[str, ...]
    no_promise: str = ""  # why nothing is known of the rate


def threshold(scores: NDArray[np.float64], rate: float) -> _Threshold:
    """Return the threshold for a target false-alarm `rate`.

    A rate below 1/(n+1) can't be had from n normals: the threshold is then their maximum, with a warning. Raises
    `CalibrationError` for no scores, or scores that are not finite.
    """
    n = _count(scores)
    wanted = math.ceil((n + 1) * (1 - rate) - 1e-9)  # 150 * (1 - 0.18) is a little above 123 in floats
    k = min(wanted, n)
    warnings: tuple[str, ...] = ()
    if wanted > n:
        need = math.ceil(1 / rate) - 1
        warnings = (
            f"a false-alarm rate of {rate:.2%} needs at least {need} normals for calibration, there are {n}: "
            f"the threshold is their maximum, good for about {1 / (n + 1):.2%}",
        )
    # The rate realised by the k-th of n order statistics is Beta(n + 1 - k, k) distributed.
    low, high = betaincinv(n + 1 - k, k, [0.025, 0.975])
    return _Threshold(float(np.sort(scores)[k - 1]), rate, 1 / (n + 1), (float(low), float(high)), n, warnings)


def _count(scores: NDArray[np.float64]) -> int:
    """Return how many scores there are. Raises `CalibrationError` for none, or one that is not finite."""
    if not len(scores) or not np.isfinite(scores).all():
        raise CalibrationError(
            f"no finite scores of unseen normals ({len(scores)} scores): add normal images and run again"
        )
    return len(scores)


def without_promise(scores: NDArray[np.float64], rate: float, n: int, needed: int) -> _Threshold:
    """Return a threshold of `n` normals, fewer than the `needed` ones of which a rate could be promised.

    As far above the highest score as that is above the median: of few normals the highest is hardly the highest of all.
    The interval says the truth, which is that nothing is known of the rate; `rate` is only what was asked for. Raises
    as `threshold`.
    """
    _count(scores)
    value = 2 * float(scores.max()) - float(np.median(scores))
    words = (
        f"promises no false-alarm rate: it learnt from {n} good image{'' if n == 1 else 's'}, too few to know one; "
        f"train again with {needed} or more"
    )
    return _Threshold(value, rate, 1.0, (0.0, 1.0), n, (words,), words)


def card(
    chosen: _Threshold,
    judged: pd.DataFrame,
    peaks: NDArray[np.float64],
    middle: float,
    method: str,
    manifest_sha256: str,
) -> dict[str, Any]:
    """Return the content of calibration.json: all that answers "why this threshold?".

    `judged`: sample_id, group_id, score of the n normals; `peaks`: the highest value of each one's anomaly map;
    `middle`: the median of those maps. The colours of heatmaps are fixed here: a normal part never glows.
    """
    ceiling = threshold(peaks, chosen.target_rate).value
    facts = asdict(chosen)
    if not chosen.no_promise:
        del facts["no_promise"]
    return {
        "threshold": facts.pop("value"),
        "map_threshold": ceiling,
        "map_scale": [middle, middle + 1.5 * (ceiling - middle)],
        "rule": _FEW_RULE if chosen.no_promise else _RULE,
        "method": method,
        "n_groups": int(judged["group_id"].nunique()),
        "manifest_sha256": manifest_sha256,
        "scores": sorted(float(f"{s:.6g}") for s in judged["score"]),
        **{k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()},
    }


_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def area_curve(anomaly_map: NDArray[np.floating]) -> _Curve:
    """Return some values of a map, highest first, and an upper bound of the share of its pixels from each upwards.

    All that a pixel threshold needs of a map, in a hundredth of its size.
    """
    values = np.sort(anomaly_map, axis=None)[::-1]
    ends = _from_the_top(values.size, _RANKS)
    return values[np.append(0, ends[:-1])].astype(np.float64), ends / values.size


def _from_the_top(n: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` ranks from 1 to `n`: all of the first, then in equal ratios."""
    return np.unique(np.geomspace(1, n, most).round().astype(np.int64))


def pixel_card(curves: Sequence[_Curve], groups: Sequence[str], target: float, pixels: int) -> dict[str, Any]:
    """Return the pixel threshold with what is known of the area that it marks on good parts: "pixel" of the card.

    `curves`: of the maps of n unseen normals, `groups` theirs, `pixels` the number of all their pixels. `interval_95`
    is of the mean area that the threshold marks, over draws of the groups with replacement, each with a threshold of
    its own: pixels of an image and images of a part are not independent. None with a single group. `n_marked` of the
    n normals have a marked pixel at all.
    """
    values = np.unique(np.concatenate([values for values, _ in curves]))
    some = values[len(values) - _from_the_top(len(values), _CANDIDATES)[::-1]]
    area_nT = np.array([np.append(0, shares)[np.searchsorted(-own, -some)] for own, shares in curves])
    area_T = area_nT.mean(0)
    limit = target * (1 + 1e-9)  # sums of shares are rounded
    chosen = int((area_T <= limit).argmax())  # nothing is above the highest value
    names, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    interval = None
    if len(names) > 1:
        rng = np.random.default_rng(0)
        times_Dn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_DRAWS)[:, number]
        drawn_DT = times_Dn @ area_nT / times_Dn.sum(1, keepdims=True)
        interval = np.quantile(area_T[(drawn_DT <= limit).argmax(1)], [0.025, 0.975]).tolist()
    return {
        "threshold": float(some[chosen]),
        "rule": _PIXEL_RULE,
        "target_area": target,
        "area": float(area_T[chosen]),
        "interval_95": interval,
        "n": len(curves),
        "n_groups": len(names),
        "n_marked": int((area_nT[:, chosen] > 0).sum()),
        "pixels": pixels,
    }


def realised_rates(
    scores: NDArray[np.float64], groups: list[str], rate: float, draws: int, seed: int
) -> NDArray[np.float64]:
    """Return false-alarm rates on one half of the groups with the other half's threshold, over seeded random halves."""
    rng = np.random.default_rng(seed)
    names = np.array(sorted(set(groups)))
    owner = np.array(groups)
    rates = []
    for _ in range(draws):
        chosen = np.isin(owner, rng.permutation(names)[: len(names) // 2])
        rates.append(float((scores[~chosen] > threshold(scores[chosen], rate).value).mean()))
    return np.array(rates)


_COARSE = 0.5  # model pixels per pixel of the image, below which more tiles would see much more
_COARSEST, _FWHM = 32, 2.355  # stride of the prior's grid; width of a Gaussian at half its height, in sigmas


def _stride(spec: "Spec", score: config.Score) -> int:
    """Return the model pixels between the finest cells that make the score."""
    finest = _COARSEST >> (len(spec.channels) - 1)
    if score.fusion == "prior":
        return _COARSEST
    if score.recon != "memory" or {"joint", "place"} & score.image.keys():
        return finest
    return max(finest, min(int(name.removeprefix("stride")) for name in score.image))


def smallest(rows: pd.DataFrame, spec: "Spec", image: config.Image, score: config.Score) -> dict[str, Any]:
    """Return how small a defect can be to be seen, in pixels of the images themselves: geometry, for the card.

    `pixels`: the side of one finest cell in the image; of a smaller defect a cell sees only a part, so that contrast
    decides. `apart`: two defects nearer to each other are one spot of the map. `image`: median (width, height) of
    `rows`, the class's normals. `scale`: model pixels per pixel of the image. `tiles`: the `image.tiles` that would see
    every pixel, where less than half of them is seen; else None. `python -m flows bench smallest` and `hairlines`
    measure it.
    """
    width, height = int(rows["width"].median()), int(rows["height"].median())
    scale = min(geometry.scale_of((height, width), image))
    cell = _stride(spec, score) / scale
    return {
        "pixels": round(cell, 1),
        "apart": round(max(cell, _FWHM * score.blur / scale), 1),
        "image": [width, height],
        "scale": round(scale, 4),
        "tiles": _every_pixel(min(width, height), image) if scale < _COARSE else None,
    }


def _every_pixel(short: int, image: config.Image) -> int:
    """Return how many tiles along a side of so many pixels leave an image as large as it is."""
    return 1 + math.ceil((short / image.size - 1) / (1 - image.overlap) - 1e-6)


def sentence(found: dict[str, Any]) -> str:
    shape = " x ".join(map(str, found["image"]))
    finer = f"; image.aspect=tile with image.tiles={found['tiles']} sees every pixel" if found.get("tiles") else ""
    return (
        f"smallest defect: about {found['pixels']} pixels of an image of {shape}, by geometry (two of them at least "
        f"{found['apart']} apart){finer}; `python -m flows bench smallest` measures it"
    )


def collapsed_levels(shares: Sequence[float]) -> bool:
    """Return whether one of several levels has nearly all cells; a single level can't collapse."""
    return len(shares) > 1 and max(shares) > LEVEL_LIMIT


def collapsed_codebook(usage: float) -> bool:
    """Return whether nearly no code is in use; `usage` is the share of the codebook in [0, 1]."""
    return usage < USAGE_LIMIT
