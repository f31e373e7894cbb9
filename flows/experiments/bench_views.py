"""Images as detectors read them, decoded and pushed through a frozen backbone once and kept on disk.

n views; S side of a view.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from torch import Tensor

from pvqae.core import config
from pvqae.core.files import write_tensors
from pvqae.core.tensors import read_tensors
from pvqae.features.examples import Examples, prepare
from pvqae.model.backbones import Backbone, Features
from pvqae.samples import geometry

PROJECT = Path(__file__).parents[2]
# The code that decides what a view's features are.
SOURCES = ("pvqae/samples", "pvqae/features", "pvqae/model")


@dataclass(frozen=True, eq=False)
class Viewed:
    """One image: features of its views in single precision, and where the views lie."""

    row: int  # position in the frame
    features: Features
    valid: Tensor  # B x S x S
    canvas: geometry.Canvas  # its pixels are black: only the geometry is kept


@cache
def source_of(*parts: str) -> str:
    """Hash of the code in these files or folders of the project; read once, as the process itself reads it."""
    total = hashlib.sha256()
    for part in parts:
        place = PROJECT / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(file.relative_to(PROJECT).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def key_of(*facts: object) -> str:
    """16 hex digits that name work: equal facts, equal work."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(examples: Examples) -> str:
    """Hash of all that a fit sees."""
    total = hashlib.sha256()
    for name, x in sorted(_tensors(examples).items()):
        total.update(name.encode() + x.numpy().tobytes())
    return total.hexdigest()


def examples_of(
    rows: pd.DataFrame, data_root: Path, params: config.Params, backbone: Backbone, folder: Path
) -> Examples:
    """The views of `rows` (manifest rows), from a file below `folder` if an earlier run left one.

    Features are in half precision, about 1 MB a view at 256 px; of a trained backbone the pixels are kept instead.
    """
    facts = (params.image.model_dump(), params.model.backbone, params.model.levels, params.train.richness)
    names = rows[["path", "sha256"]].values.tolist()
    key = key_of(names, facts, backbone.weights_sha256, source_of(*SOURCES))
    file = folder / f"{key}.safetensors"
    try:
        return _from_tensors(read_tensors(file))
    except (FileNotFoundError, SafetensorError):
        pass
    found = prepare(rows, data_root, params.image, backbone, params.train.richness)
    tensors = _tensors(found)
    write_tensors(file, tensors)
    return _from_tensors(tensors)  # of one memory layout with what is read back: sums then agree to the last bit


def _tensors(found: Examples) -> dict[str, Tensor]:
    tensors = {"rows": found.rows, "cost": found.cost, "valid": found.valid}
    if found.images is not None:
        tensors["images"] = found.images
    if found.features is not None:
        tensors |= {f"level_{r}": x for r, x in enumerate(found.features.levels)}
        tensors["target"] = found.features.target
    return {name: x.contiguous() for name, x in tensors.items()}


def _from_tensors(tensors: dict[str, Tensor]) -> Examples:
    levels = [tensors[f"level_{r}"] for r in range(sum(name.startswith("level_") for name in tensors))]
    features = Features(levels, tensors["target"]) if levels else None
    return Examples(tensors["rows"], tensors.get("images"), features, tensors["cost"], tensors["valid"])


def each(examples: Examples, rows: pd.DataFrame, image: config.Image) -> Iterator[Viewed]:
    """One image after another, in the order of `rows`, the manifest rows that `examples` were made of."""
    for position, (height, width) in enumerate(zip(rows["height"], rows["width"], strict=True)):
        batch = examples.batch((examples.rows == position).nonzero()[:, 0])
        assert batch.features is not None, "only frozen features are kept"
        yield Viewed(position, batch.features, batch.valid, _geometry(int(height), int(width), image))


@lru_cache(maxsize=8)
def _geometry(height: int, width: int, image: config.Image) -> geometry.Canvas:
    return geometry.canvas(np.zeros((height, width, 3), dtype=np.float32), image)
