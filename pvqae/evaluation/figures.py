"""The figures of one class, as metrics.json names them, from its scored images and its pixel histograms.

The points of the report's charts, thinned so that a page stays small for any number of images or steps.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.evaluation import metrics
from pvqae.evaluation.metrics import roc
from pvqae.inference.scoring import PARTS

Values = dict[str, Any]


def of_class(
    images: pd.DataFrame,
    pixels: dict[str, metrics.PixelMetrics],
    threshold: float,
    fusion: str,
    health: Values,
    pixel: Values | None = None,
) -> Values:
    """Return the content of metrics.json but for its times.

    `images` is images.csv; `pixels` are by map ("fused" and the parts there are), empty without masks; `pixel` is the
    part of the calibration card about the pixel threshold, if there is one.
    """
    defect, scores = _labels(images), images["image_score"].to_numpy()
    rates = metrics.rates(defect, scores, threshold)
    pixel_auroc = {name: pixels[name].auroc() if name in pixels else None for name in ("fused", *PARTS)}
    return {
        "image_auroc": metrics.image_auroc(defect, scores),
        "pixel_auroc": pixel_auroc["fused"],
        "aupro": pixels["fused"].aupro() if pixels else None,
        "aupro_005": pixels["fused"].aupro(0.05) if pixels else None,
        "pixel_f1_max": pixels["fused"].f1_max() if pixels else None,
        "seg_f1": pixels["fused"].f1() if pixels and pixel else None,
        "pixel_threshold": pixel["threshold"] if pixel else None,
        "pixel_false_alarm_area": float(images["marked_area"][~defect].mean()) if pixel and not defect.all() else None,
        "f1_max": metrics.f1_max(defect, scores),
        "threshold": float(threshold),
        "false_alarm_rate": rates.false_alarm,
        "miss_rate": rates.miss,
        **{f"{part}_image_auroc": _image_auroc(defect, images, part) for part in PARTS},
        **{f"{part}_pixel_auroc": pixel_auroc[part] for part in PARTS},
        "fusion": fusion,
        "kinds": {kind: _of_kind(images, kind, threshold) for kind in sorted(set(images["kind"][defect]))},
        "prior_cross_entropy": health["prior_cross_entropy"],
        "frequency_cross_entropy": health["frequency_cross_entropy"],
        "level_shares": health["level_shares"],
        "codebook_usage": health["codebook_usage"],
        "n_normal": int((~defect).sum()),
        "n_defect": int(defect.sum()),
    }


def _image_auroc(defect: NDArray[np.bool_], images: pd.DataFrame, part: str) -> float | None:
    """Return the image AUROC of a part; None too where no network was trained, and the part is not there."""
    return metrics.image_auroc(defect, images[part].to_numpy()) if part in images else None


def _of_kind(images: pd.DataFrame, kind: str, threshold: float) -> Values:
    """Judge one kind of defect against all normals."""
    own = images[(images["label"] == "normal") | ((images["label"] == "defect") & (images["kind"] == kind))]
    defect, scores = _labels(own), own["image_score"].to_numpy()
    return {
        "image_auroc": metrics.image_auroc(defect, scores),
        "miss_rate": metrics.rates(defect, scores, threshold).miss,
        "n": int(defect.sum()),
    }


def charts(images: pd.DataFrame, threshold: float, history: list[Values]) -> Values:
    """Return the content of curves.json."""
    defect, scores = _labels(images), images["image_score"].to_numpy()
    return {
        "roc": _roc_points(defect, scores),
        "histogram": _histogram(defect, scores, threshold),
        "training": _training(history),
    }


def _labels(images: pd.DataFrame) -> NDArray[np.bool_]:
    """Return True for defects."""
    return np.asarray(images["label"] == "defect", dtype=np.bool_)


_Floats = NDArray[np.float64]

_POINTS = 200
_SCORES = 1000
_BINS = 48


def _roc_points(defect: NDArray[np.bool_], scores: _Floats) -> dict[str, list[float]]:
    """Return at most `_POINTS` points of the ROC of N images; none if normals or defects are missing."""
    if defect.all() or not defect.any():
        return {"false_positive_rate": [], "true_positive_rate": []}
    false, true = roc(defect, scores)
    return {"false_positive_rate": _thin(false, _POINTS), "true_positive_rate": _thin(true, _POINTS)}


def _histogram(defect: NDArray[np.bool_], scores: _Floats, threshold: float) -> dict[str, Any]:
    """Return counts per bin of the scores of normals and defects, and the sorted scores (at most `_SCORES` of each).

    The axis ends six times as far above the lowest score as the threshold: one extreme defect must not squeeze all
    normals into one bar. The last bin also holds the scores beyond it.
    """
    low, high = min(float(scores.min()), threshold), float(scores.max())
    if threshold > low:
        high = max(min(high, low + 6 * (threshold - low)), low + 1.1 * (threshold - low))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    parts = {"normal": scores[~defect], "defect": scores[defect]}
    return {
        "edges": edges.tolist(),
        "clipped": bool(scores.max() > high),
        "counts": {name: np.histogram(np.minimum(part, high), edges)[0].tolist() for name, part in parts.items()},
        "scores": {name: _thin(np.sort(part), _SCORES) for name, part in parts.items()},
    }


def _training(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one series per phase, fold and number in the history's rows: {phase, fold, name, step, value}."""
    series: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in history:
        for name, value in row.items():
            if name not in ("step", "fold") and _is_number(value):
                series[str(row.get("phase", "training")), str(row.get("fold")), name].append((row["step"], value))
    result = []
    for (phase, fold, name), pairs in series.items():
        step, value = (_thin(column, _POINTS) for column in np.array(pairs, dtype=np.float64).T)
        result.append({"phase": phase, "fold": fold, "name": name, "step": step, "value": value})
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thin(values: _Floats, limit: int) -> list[float]:
    """Return at most `limit` values at even places, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(limit, len(values))).round().astype(int)
    return [float(value) for value in values[places]]
