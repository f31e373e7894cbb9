"""Which read-out suits a class, chosen on its own unseen normals and synthetic defects on them; never on a test image.

The kinds of synthetic defects are `SELECTION_KINDS`: the frozen gate is made of others, so what chose a read-out does
not judge it. The finest resolution finds small sharp defects and masks best, all together find large faint ones.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvqae.calibration.thresholds import auroc
from pvqae.core import config
from pvqae.datasets.anomalies import ANOMALIES, SELECTION_KINDS
from pvqae.inference import readout
from pvqae.inference.readout import READOUTS, Readout
from pvqae.inference.scoring import Scorer
from pvqae.samples import geometry, images

TRIED = 16  # normals that the finished detector is tried on
MOST = 60  # normals that are looked at, per class
_EXTENTS = (0.002, 0.06)  # share of the image that a defect covers
_EQUAL = 0.01  # image AUROC: candidates this close to the best are as good, and the preferred one is taken
_STRIDE = 4  # pixels between the map values that are compared

_Scores = dict[Readout, float]


@dataclass
class _Seen:
    """What one fit says of its unseen normals and of the defects put on them, under every read-out."""

    kinds: list[str] = field(default_factory=list)  # of each image; "" is a normal
    image_scores: list[_Scores] = field(default_factory=list)
    maps: dict[Readout, list[NDArray[np.float32]]] = field(default_factory=lambda: {use: [] for use in READOUTS})
    masks: list[NDArray[np.bool_]] = field(default_factory=list)


def settled(score: config.Score, image: Readout = READOUTS[0], at_map: Readout = READOUTS[0]) -> config.Score:
    """Return `score` with the chosen read-outs in place of "auto"."""
    chosen = {
        "image_levels": image.levels,
        "image_scale": image.scale,
        "map_levels": at_map.levels,
        "map_scale": at_map.scale,
    }
    return score.model_copy(update={key: value for key, value in chosen.items() if getattr(score, key) == "auto"})


def is_open(score: config.Score) -> bool:
    """Return whether anything is left to choose."""
    return "auto" in (score.image_levels, score.image_scale, score.map_levels, score.map_scale)


def look(scorer: Scorer, pictures: Iterator[tuple[str, images.Floats]]) -> _Seen:
    """Measure each picture once as it is and once with each kind of defect, and read it out in every way."""
    seen = _Seen()
    for sample_id, picture in pictures:
        for kind, image, mask in _with_defects(sample_id, picture):
            _add(seen, scorer, kind, image, mask)
    return seen


def _with_defects(sample_id: str, picture: images.Floats) -> Iterator[tuple[str, images.Floats, images.Mask]]:
    """Yield the picture as it is, kind "", and once with each kind of `SELECTION_KINDS`."""
    yield "", picture, np.zeros(picture.shape[:2], dtype=np.bool_)
    for kind in SELECTION_KINDS:
        digest = hashlib.sha256(f"{kind}/{sample_id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8]))
        image, mask = ANOMALIES[kind](picture, rng, float(np.exp(rng.uniform(*np.log(_EXTENTS)))))
        if mask.any():
            yield kind, image, mask


def tried(scorer: Scorer, threshold: float, pictures: Iterable[tuple[str, images.Floats]]) -> dict[str, Any]:
    """Count, for the card, how many of n synthetic defects on these normals the detector scores above its threshold.

    `highest` is their highest score, None where no defect could be made visible.
    """
    scores = [
        scorer.one(image, sample_id).image_score
        for sample_id, picture in pictures
        for kind, image, _ in _with_defects(sample_id, picture)
        if kind
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


def _add(seen: _Seen, scorer: Scorer, kind: str, image: images.Floats, mask: images.Mask) -> None:
    canvas, raw = scorer.measured(image)
    placed = geometry.resize_mask(mask, canvas.height, canvas.width)[::_STRIDE, ::_STRIDE]
    seen.kinds.append(kind)
    seen.masks.append(placed)
    scores: _Scores = {}
    for use in READOUTS:
        recon = scorer.recon_map(raw, use)
        scores[use] = readout.top_mean(recon[raw.cells], scorer.score.top, len(recon))
        seen.maps[use].append(canvas.stitch(scorer.smooth(recon))[::_STRIDE, ::_STRIDE])
    seen.image_scores.append(scores)


def _over_kinds(kind_n: list[str], scores: NDArray[np.float64]) -> float:
    """Return the image AUROC as the mean over the kinds: each against all normals, whose kind is ""."""
    kinds, values = np.array(kind_n), []
    for kind in sorted(set(kind_n) - {""}):
        chosen = (kinds == kind) | (kinds == "")
        values.append(auroc(kinds[chosen] != "", scores[chosen]))
    return float(np.mean(values))


def _image_auroc(seen: _Seen, use: Readout) -> float:
    return _over_kinds(seen.kinds, np.array([scores[use] for scores in seen.image_scores]))


def _pixel_auroc(seen: _Seen, use: Readout) -> float:
    masks = np.concatenate([mask.ravel() for mask in seen.masks])
    return auroc(masks, np.concatenate([values.ravel() for values in seen.maps[use]]))


def choose(score: config.Score, looks: list[_Seen]) -> tuple[config.Score, pd.DataFrame]:
    """Return the settled score, and a table of what each read-out reached: levels, scale, image_auroc, pixel_auroc.

    Fits (the folds of a cross-fitted class) are judged one by one and averaged: their scores have scales of their own.
    """
    usable = [seen for seen in looks if "" in seen.kinds and set(seen.kinds) - {""}]
    if not usable:  # no defect could be made visible: nothing to choose by
        return settled(score), pd.DataFrame(columns=["levels", "scale", "image_auroc", "pixel_auroc"])
    table = pd.DataFrame(
        {
            "levels": use.levels,
            "scale": use.scale,
            "image_auroc": np.mean([_image_auroc(seen, use) for seen in usable]),
            "pixel_auroc": np.mean([_pixel_auroc(seen, use) for seen in usable]),
        }
        for use in READOUTS
    )
    close = table["image_auroc"] >= table["image_auroc"].max() - _EQUAL
    image, at_map = READOUTS[int(close.to_numpy().argmax())], READOUTS[int(table["pixel_auroc"].to_numpy().argmax())]
    return settled(score, image, at_map), table
