"""The figures of one class, as metrics.json names them, from its scored images and its pixel histograms."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.evaluation import curves, metrics

Values = dict[str, Any]
PARTS = ("s_prior", "s_recon", "product")


def of_class(
    images: pd.DataFrame, pixels: dict[str, metrics.PixelMetrics], threshold: float, fusion: str, health: Values
) -> Values:
    """metrics.json but for its times. `images` is images.csv, `pixels` by map ("fused" and PARTS), empty: no masks."""
    defect, scores = labels(images), images["image_score"].to_numpy()
    rates = metrics.rates(defect, scores, threshold)
    pixel_auroc = {name: pixels[name].auroc() if pixels else None for name in ("fused", *PARTS)}
    return {
        "image_auroc": metrics.image_auroc(defect, scores),
        "pixel_auroc": pixel_auroc["fused"],
        "aupro": pixels["fused"].aupro() if pixels else None,
        "f1_max": metrics.f1_max(defect, scores),
        "threshold": float(threshold),
        "false_alarm_rate": rates.false_alarm,
        "miss_rate": rates.miss,
        **{f"{part}_image_auroc": metrics.image_auroc(defect, images[part].to_numpy()) for part in PARTS},
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


def _of_kind(images: pd.DataFrame, kind: str, threshold: float) -> Values:
    """One kind of defect against all normals."""
    own = images[(images["label"] == "normal") | ((images["label"] == "defect") & (images["kind"] == kind))]
    defect, scores = labels(own), own["image_score"].to_numpy()
    return {
        "image_auroc": metrics.image_auroc(defect, scores),
        "miss_rate": metrics.rates(defect, scores, threshold).miss,
        "n": int(defect.sum()),
    }


def charts(images: pd.DataFrame, threshold: float, history: list[Values]) -> Values:
    """curves.json."""
    defect, scores = labels(images), images["image_score"].to_numpy()
    return {
        "roc": curves.roc_points(defect, scores),
        "histogram": curves.histogram(defect, scores, threshold),
        "training": curves.training(history),
    }


def labels(images: pd.DataFrame) -> NDArray[np.bool_]:
    """True for defects."""
    return np.asarray(images["label"] == "defect", dtype=np.bool_)
