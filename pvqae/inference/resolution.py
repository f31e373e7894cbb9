"""How small a defect can be to be seen, in pixels of the images themselves: the geometry, before anything is measured.

`pvqae bench smallest` measures it.
"""

from typing import Any

import pandas as pd

from pvqae import config
from pvqae.datasets import geometry
from pvqae.model.backbones import Spec

COARSEST, FWHM = 32, 2.355  # stride of the prior's grid; width of a Gaussian at half its height, in sigmas


def stride(spec: Spec, fusion: str) -> int:
    """Model pixels between the finest cells that make the score."""
    return COARSEST if fusion == "prior" else COARSEST >> (len(spec.channels) - 1)


def smallest(rows: pd.DataFrame, spec: Spec, image: config.Image, score: config.Score) -> dict[str, Any]:
    """Part of the card. `pixels`: the side of one finest cell in the image; of a smaller defect a cell sees only a
    part, so that contrast decides. `apart`: nearer to each other, two defects are one spot of the map. `image`: median
    (width, height) of `rows`, the class's normals.
    """
    width, height = int(rows["width"].median()), int(rows["height"].median())
    scale = min(geometry.scale_of((height, width), image))
    cell = stride(spec, score.fusion) / scale
    return {
        "pixels": round(cell, 1),
        "apart": round(max(cell, FWHM * score.blur / scale), 1),
        "image": [width, height],
        "scale": round(scale, 4),
    }


def sentence(found: dict[str, Any]) -> str:
    shape = " x ".join(map(str, found["image"]))
    return (
        f"smallest defect: about {found['pixels']} pixels of an image of {shape}, by geometry (two of them at least "
        f"{found['apart']} apart); `pvqae bench smallest` measures it"
    )
