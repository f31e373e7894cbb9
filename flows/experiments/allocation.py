"""Which resolution's distance counts where, decided by the allocation: is anything won over one choice for all cells?

A `Table` names, for each level that a cell may be allocated, the memory's levels whose distances count in such a cell.
Tables with one entry throughout are the product's read-outs; the others let the allocation decide. They are compared on
the same measures of the same fit; nothing of this is in the product.

V views; R levels, coarse to fine; H W the finest grid; n images.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pvqae.calibration.choice import over_kinds
from pvqae.calibration.thresholds import auroc
from pvqae.inference.readout import top_mean
from pvqae.inference.scoring import Scorer
from pvqae.samples import geometry, images

Table = tuple[tuple[int, ...], ...]  # for each allocated level, coarse to fine: the memory's levels that count
Units = dict[tuple[int, ...], float]
SCALE = "location"  # statistics of normals; the one that most classes choose


@dataclass(frozen=True, eq=False)
class Seen:
    """One image: each level's distances in deviations of normals, and what its cells are allocated."""

    kind: str  # "" is a normal
    distances: Tensor  # R x cells, valid cells of the finest grid
    expected: Tensor  # cells, the level of the expected budget
    spent: Tensor  # cells, the level that the cell itself takes
    defect: NDArray[np.bool_]  # cells
    views: int


def seen(scorer: Scorer, kind: str, image: images.Floats, mask: images.Mask) -> Seen:
    """Measure an image (H0, W0, 3) in [0, 1] with the mask of its defect."""
    canvas, raw = scorer.measured(image)
    maps = scorer.scaled(raw, SCALE)
    names = sorted(name for name in maps if name.startswith("memory_"))
    grid = maps[names[-1]].shape[-2:]
    inside = raw.valid[names[-1]]
    distances = torch.stack([_to_grid(maps[name], grid, "bilinear")[inside] for name in names])
    placed = geometry.resize_mask(mask, canvas.height, canvas.width)
    return Seen(
        kind,
        distances,
        _to_grid(raw.budget.expected.float(), grid, "nearest")[inside].long(),
        _to_grid(raw.budget.levels.float(), grid, "nearest")[inside].long(),
        _defect(canvas, placed, grid, inside),
        len(raw.cells),
    )


def _to_grid(maps_VHW: Tensor, grid: torch.Size, mode: str) -> Tensor:
    return F.interpolate(maps_VHW[:, None], tuple(grid), mode=mode)[:, 0]


def _defect(canvas: geometry.Canvas, mask: images.Mask, grid: torch.Size, inside: Tensor) -> NDArray[np.bool_]:
    """Valid cells of which a quarter is defect."""
    parts = []
    for view in canvas.views:
        side = view.valid.shape[0]
        full = np.zeros((side, side), dtype=np.float32)
        full[view.inside] = mask[view.place]
        parts.append(F.adaptive_avg_pool2d(torch.from_numpy(full)[None], (grid[0], grid[1]))[0] > 0.25)
    found: NDArray[np.bool_] = torch.stack(parts)[inside].numpy()
    return found


def tables(levels: int) -> Iterator[Table]:
    """Every way to let the allocation choose among: all levels, the finest two, the finest."""
    choices = [tuple(range(first, levels)) for first in range(levels)][-3:]
    yield from product(choices, repeat=levels)


def fixed(levels: int) -> list[Table]:
    """The tables that do not look at the allocation."""
    return [table for table in tables(levels) if len(set(table)) == 1]


def own_level(levels: int) -> Table:
    """The literal reading: a cell's budget names the one resolution whose distance counts there."""
    return tuple((level,) for level in range(levels))


def up_to_own(levels: int) -> Table:
    """A cell has codes on every level up to its own."""
    return tuple(tuple(range(level + 1)) for level in range(levels))


def units(found: Iterable[Seen], sums: Iterable[tuple[int, ...]]) -> Units:
    """Deviation of the sum of some levels' distances over the cells of the normals among `found`: sums of one and of
    three levels are then of one size."""
    every = torch.cat([item.distances for item in found if not item.kind], dim=1)
    return {levels: float(every[list(levels)].sum(0).std()) for levels in set(sums)}


def cells(item: Seen, table: Table, unit: Units, budget: str) -> Tensor:
    """The anomaly of each valid cell under `table`; `budget`: expected or spent."""
    allocated = getattr(item, budget)
    out = torch.zeros(item.distances.shape[1])
    for level, counted in enumerate(table):
        mine = allocated == level
        out[mine] = item.distances[list(counted)][:, mine].sum(0) / unit[counted]
    return out


@dataclass(frozen=True)
class Reached:
    """`pixel_auroc` is over cells of the finest grid."""

    image_auroc: float
    pixel_auroc: float


def judge(found: Sequence[Seen], table: Table, budget: str, unit: Units, top: float) -> Reached:
    """Of normals and defects under one table; the image AUROC is the mean over the kinds, each against all normals."""
    maps = [cells(item, table, unit, budget) for item in found]
    scores = np.array([top_mean(x, top, item.views) for x, item in zip(maps, found, strict=True)])
    defect = np.concatenate([item.defect for item in found])
    pixel = auroc(defect, torch.cat(maps).numpy()) if defect.any() else float("nan")
    return Reached(over_kinds([item.kind for item in found], scores), float(pixel))


def choose(found: Sequence[Seen], candidates: Iterable[Table], budget: str, unit: Units, top: float) -> Table:
    """The table of the best image AUROC on normals with synthetic defects; of equals the first."""
    reached = [(judge(found, table, budget, unit, top).image_auroc, table) for table in candidates]
    return max(reached, key=lambda pair: pair[0])[1]
