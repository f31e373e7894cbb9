"""Whether a finished detector finds defects at all: synthetic ones on its own normals, for the card.

The kinds of synthetic defects are `SELECTION_KINDS`: the frozen gate is made of others. They choose nothing: what ranks
read-outs on synthetic defects misleads about real ones (docs/experiments/readouts.md).
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pvqae.datasets.anomalies import ANOMALIES, SELECTION_KINDS
from pvqae.inference.scoring import Scorer
from pvqae.samples import images

TRIED = 16  # normals that the finished detector is tried on
_EXTENTS = (0.002, 0.06)  # share of the image that a defect covers


def with_defects(sample_id: str, picture: images.Floats) -> Iterator[tuple[str, images.Floats]]:
    """Yield each kind of `SELECTION_KINDS` that can be made visible, and the picture (H, W, 3) with it."""
    for kind in SELECTION_KINDS:
        digest = hashlib.sha256(f"{kind}/{sample_id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8]))
        image, mask = ANOMALIES[kind](picture, rng, float(np.exp(rng.uniform(*np.log(_EXTENTS)))))
        if mask.any():
            yield kind, image


def tried(scorer: Scorer, threshold: float, pictures: Iterable[tuple[str, images.Floats]]) -> dict[str, Any]:
    """Count how many of n synthetic defects on these normals the detector scores above its threshold.

    `highest` is their highest score, None where no defect could be made visible.
    """
    scores = [
        scorer.one(image, sample_id).image_score
        for sample_id, picture in pictures
        for _, image in with_defects(sample_id, picture)
    ]
    found, highest = sum(score > threshold for score in scores), float(f"{max(scores):.6g}") if scores else None
    return {"n": len(scores), "found": found, "highest": highest}


def blind(tried: dict[str, Any], threshold: float) -> list[str]:
    """Return a warning if the detector finds none of its synthetic defects; empty if it does, or none could be made."""
    if tried["found"] or not tried["n"]:
        return []
    return [
        f"none of {tried['n']} synthetic defects scores above the threshold {threshold:.6g}, the highest "
        f"{tried['highest']:.6g}: it would find nothing and can't be champion; add normals of more parts, or images "
        "that show more of what varies"
    ]
