"""The frozen gate's synthetic defects: one of each kind per gate normal, fixed by the bytes of that image alone."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pvqae.core.errors import DataError
from pvqae.datasets.anomalies import ANOMALIES, GATE_KINDS
from pvqae.datasets.inspection import Facts, inspect
from pvqae.samples import images

EXTENTS = (0.003, 0.05)  # share of the image
LONGEST = 200  # bytes of a name
SCRATCH = 10  # a scratch is so many times its extent long, in diagonals


@dataclass(frozen=True)
class Made:
    """A synthetic defect: its manifest row, and what inspecting its file said."""

    row: dict[str, Any]
    facts: Facts


def _draw(row: dict[str, Any], kind: str, data: Path, image_path: Path, mask_path: Path, bits: images.Bits) -> None:
    # By the image's hash, not its number: a new image changes no old one.
    rng = np.random.default_rng([int(row["sha256"][:16], 16), GATE_KINDS.index(kind)])
    extent = float(np.exp(rng.uniform(*np.log(EXTENTS)))) * (SCRATCH if kind == "scratch" else 1)
    defective, mask = ANOMALIES[kind](images.read(row["path"], data, bits), rng, extent)
    images.write(image_path, defective, row["channels"], row["bit_depth"])
    images.write(mask_path, mask)


def _short(name: str) -> str:
    """Of a long name its end may have to go: what is appended must fit into the 255 bytes of a file system."""
    if len(name.encode()) <= LONGEST:
        return name
    start = name.encode()[: LONGEST - 17].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _make(row: dict[str, Any], kind: str, data: Path, folder: Path, bits: images.Bits) -> Made:
    name = _short(row["sample_id"].removeprefix(row["category"] + "/").replace("/", "_"))
    place = Path(row["category"]) / f"synthetic_{kind}"
    image, mask = place / f"{name}.png", place / f"{name}_mask.png"
    _draw(row, kind, data, folder / image, folder / mask, bits)
    facts = inspect(image, folder, bits)
    if isinstance(facts, str):
        raise DataError(facts)
    changed = {
        "sample_id": f"{row['category']}/gate/synthetic_{kind}/{name}",
        "path": (Path("gate") / image).as_posix(),
        "mask_path": (Path("gate") / mask).as_posix(),
        "sha256": facts.sha256,
        "label": "defect",
        "kind": f"synthetic_{kind}",
        "bit_depth": facts.header.bit_depth,
    }
    return Made({**row, **changed}, facts)


def synthesise(normals: pd.DataFrame, data: Path, folder: Path, bits: images.Bits = "auto") -> Iterator[Made]:
    """Defective copies of each gate normal, one per kind, with exact masks; files below `folder`, later `data`/gate.

    Their rows have label defect, kind synthetic_<kind> and the group of the normal.
    """
    wanted = [(row, kind) for row in normals.to_dict("records") for kind in GATE_KINDS]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda pair: _make(pair[0], pair[1], data, folder, bits), wanted)
