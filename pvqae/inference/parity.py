"""Does a bundle give the scores that were evaluated? Run in a fresh process before anything is registered:

python -m pvqae.inference.parity BUNDLE IMAGES_CSV --rows N --data-root DATA
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from pvqae.inference import bundle


def compare(folder: Path, images_csv: Path, data_root: Path, rows: int) -> dict[str, float | int]:
    """Score `rows` images of an evaluation's images.csv again, evenly spread; the largest difference of a score."""
    table = pd.read_csv(images_csv, dtype={"sample_id": str, "path": str})
    chosen = table.iloc[:: max(1, len(table) // max(1, rows))].head(rows)
    detector = bundle.load(folder)
    again = detector.score_many(zip(chosen["sample_id"], chosen["path"], strict=True), data_root)
    pairs = zip(again, chosen["image_score"], strict=True)
    differences = [abs(scored.image_score - evaluated) for scored, evaluated in pairs]
    return {"max_abs_difference": max(differences, default=float("inf")), "images": len(differences)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images_csv", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    given = parser.parse_args()
    print(json.dumps(compare(given.bundle, given.images_csv, given.data_root, given.rows)))


if __name__ == "__main__":
    main()
