"""Do the thresholds keep their promise? `pvqae bench calibration C` tries it on the class's own unseen normals."""

import numpy as np
import pandas as pd

from pvqae import config, runtime
from pvqae.datasets import manifest
from pvqae.errors import CalibrationError
from pvqae.inference import bundle
from pvqae.inference.calibration import realised_rates
from pvqae.layout import Layout
from pvqae.progress import track

DRAWS = 200


def unseen_normals(layout: Layout, category: str, method: str) -> pd.DataFrame:
    """Rows of the manifest that the class's shipped fit has not learned from and that are normal."""
    rows = manifest.read(layout.manifest)
    splits = ["calibrate", "test", "gate"] if method == "held_out" else ["test", "gate"]
    keep = (rows["category"] == category) & (rows["label"] == "normal") & rows["split"].isin(splits)
    return rows[keep]


def calibration(layout: Layout, params: config.Params, category: str) -> dict[str, float]:
    """Over seeded random halves of the unseen normals' groups: threshold from one half, false alarms on the other."""
    runtime.apply(runtime.plan(params.compute, 1))
    detector = bundle.load(layout.bundle(category))
    rows = unseen_normals(layout, category, detector.card["method"])
    if rows["group_id"].nunique() < 4:
        raise CalibrationError(f"{category}: expected unseen normals of at least 4 groups, found {len(rows)} images")
    pairs = zip(rows["sample_id"], rows["path"], strict=True)
    scores = np.array([s.image_score for s in track(detector.score_many(pairs, layout.data), "scoring", len(rows))])
    target = params.calibration.false_alarm_rate
    rates = realised_rates(scores, list(rows["group_id"]), target, DRAWS, params.seed)
    low, high = np.quantile(rates, [0.025, 0.975])
    facts = {"n_normals": len(rows), "n_groups": rows["group_id"].nunique(), "target": target, "draws": DRAWS}
    return facts | {"mean": float(rates.mean()), "low": float(low), "high": float(high)}
