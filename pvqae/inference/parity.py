"""Does a bundle give the scores that were evaluated? `pvqae parity` asks it before anything is registered."""

from pathlib import Path

import pandas as pd

from pvqae.inference import bundle


def compare(folder: Path, images_csv: Path, data_root: Path, rows: int) -> dict[str, float | int]:
    """Score `rows` images of an evaluation's images.csv again, evenly spread; the largest difference of a score."""
    table = pd.read_csv(images_csv, dtype=str, keep_default_na=False).astype({"image_score": float})
    chosen = table.iloc[:: max(1, len(table) // max(1, rows))].head(rows)
    detector = bundle.load(folder)
    again = detector.score_many(zip(chosen["sample_id"], chosen["path"], strict=True), data_root)
    pairs = zip(again, chosen["image_score"], strict=True)
    differences = [abs(scored.image_score - evaluated) for scored, evaluated in pairs]
    return {"max_abs_difference": max(differences, default=float("inf")), "images": len(differences)}
