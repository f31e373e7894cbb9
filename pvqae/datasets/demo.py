"""The embedded dataset: three photographs that ship inside scikit-image, cut into cells. No quality claim.

A photograph of 512 px gives 4 x 4 disjoint cells of 128 px. A cell is a part (the group of its images): mirrored,
turned and under a little other light it gives several images. Test cells are never trained on.
"""

import hashlib
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image

from pvqae.core.files import whole_folder
from pvqae.datasets import anomalies
from pvqae.samples import images
from pvqae.samples.images import Floats

_CELL = 128
_COLUMNS = 4
_VARIANTS = 4  # images per cell
_TEST_CELLS = (5, 8, 10, 15)
# Such as a person sees on grass and pebbles, too: a faint stain among them is no defect that anyone would mark.
_KINDS = ("scratch", "spot", "fill", "blur")
# Quarter turns allowed: bricks lie in rows, pebbles and grass (seen from above) have no direction.
TURNS = {"brick": (0, 2), "gravel": (0, 1, 2, 3), "grass": (0, 1, 2, 3)}
_SIDE = 64  # pixels of a surface
_README = """demo, synthetic, no quality claim

Made by `pvqae data demo` from the photographs brick, gravel and grass of scikit-image (CC0): 128 px cells.
The defects are synthetic (pvqae.datasets.anomalies) and their masks exact. The name of a file says its cell.
"""


def _rng(*names: object) -> np.random.Generator:
    """Return one stream per image, so that no image depends on which others are made."""
    text = "/".join(map(str, names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))


def _photograph(name: str) -> Floats:
    with as_file(files("skimage") / "data" / f"{name}.png") as path:
        return images.read(path)


def _variant(cell: Floats, name: str, rng: np.random.Generator) -> Floats:
    """Return the cell turned or mirrored, slightly brighter or darker, with a camera's noise; grey stays grey."""
    turned = np.rot90(cell, int(rng.choice(TURNS[name])))
    turned = turned[:, ::-1] if rng.random() < 0.5 else turned
    light = turned * rng.uniform(0.94, 1.06) + rng.uniform(-0.02, 0.02)
    return np.clip(light + rng.normal(0, 0.01, (_CELL, _CELL, 1)), 0, 1).astype(np.float32)


def _write_cell(folder: Path, name: str, index: int, cell: Floats) -> None:
    tested = index in _TEST_CELLS
    for number in range(_VARIANTS):
        stem = f"crop{index:02}_{number}"
        picture = _variant(cell, name, _rng(name, stem))
        images.write(folder / ("test" if tested else "train") / "good" / f"{stem}.png", picture, channels=1)
    for number, kind in enumerate(_KINDS if tested else ()):
        stem = f"crop{index:02}_{_VARIANTS + number}"
        rng = _rng(name, stem)
        picture = _variant(cell, name, rng)
        extent = float(np.exp(rng.uniform(np.log(0.04), np.log(0.16))))
        defective, mask = anomalies.ANOMALIES[kind](picture, rng, 5 * extent if kind == "scratch" else extent)
        images.write(folder / "test" / kind / f"{stem}.png", defective, channels=1)
        images.write(folder / "ground_truth" / kind / f"{stem}_mask.png", mask)


def make(out: Path) -> None:
    """Write the dataset to `out` whole, replacing what is there; the same bytes each time."""
    with whole_folder(out) as part:
        for name in TURNS:
            photograph = _photograph(name)
            for index in range(_COLUMNS * _COLUMNS):
                top, left = _CELL * (index // _COLUMNS), _CELL * (index % _COLUMNS)
                _write_cell(part / name, name, index, photograph[top : top + _CELL, left : left + _CELL])
        (part / "README.txt").write_text(_README, "utf-8")


def make_surfaces(out: Path, count: int) -> None:
    """Make a class with enough parts for the gate: smooth grey surfaces, one image a part. No quality claim.

    Writes `count` good images to `out`/part/good whole, replacing what is there; the same bytes each time.
    """
    rng = np.random.default_rng(0)
    with whole_folder(out) as part:
        for number in range(count):
            coarse = Image.fromarray(rng.uniform(-1, 1, (5, 5)).astype(np.float32))
            waves = np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
            light = 0.5 + rng.uniform(-0.03, 0.03) + 0.05 * waves + rng.normal(0, 0.01, (_SIDE, _SIDE))
            picture = np.repeat(light[..., None], 3, axis=2).astype(np.float32)
            images.write(part / "part" / "good" / f"{number:03}.png", np.clip(picture, 0, 1), channels=1)
