"""The images of some manifest rows as the network reads them, decoded and pushed through the backbone once.

n views (one per image, several where images are tiled); R levels; h w coarsest grid; H W finest; S side of a view.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae import config, seeding
from pvqae.datasets import geometry, images
from pvqae.errors import DataError
from pvqae.model.backbones import Backbone, Features
from pvqae.progress import track
from pvqae.training import richness
from pvqae.training.features import Reader, Store, Views
from pvqae.training.spill import Column


@dataclass(frozen=True, eq=False)
class Batch:
    """One training step's input on the device."""

    images: Tensor | None  # B x 3 x S x S, where the backbone itself is trained
    features: Features | None  # where it is frozen
    cost: Tensor  # B x h x w in [0, 1]
    valid: Tensor  # B x S x S; False on padding

    def mirrored(self) -> "Batch":
        """Left-right; of frozen features the mirror is approximate, and good enough."""
        kept = self.features
        return Batch(
            None if self.images is None else self.images.flip(-1),
            None if kept is None else Features([x.flip(-1) for x in kept.levels], kept.target.flip(-1)),
            self.cost.flip(-1),
            self.valid.flip(-1),
        )


class Learned(Protocol):
    """What a fit learns from."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, device: str = "cpu") -> Batch:
        """The views at `indices` as float32 on `device`."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """All views: half precision, about 1 MB of features per view at 256 px; many lie in files (`spill`)."""

    rows: Tensor  # n, the row of the frame that each view comes from
    images: Tensor | None
    features: Features | None
    cost: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, device: str = "cpu") -> Batch:
        """The views at `indices` as float32 on `device`."""

        def take(x: Tensor) -> Tensor:
            chosen = x[indices].to(device)
            return chosen.float() if chosen.is_floating_point() else chosen

        kept = self.features
        features = None if kept is None else Features([take(x) for x in kept.levels], take(kept.target))
        return Batch(None if self.images is None else take(self.images), features, take(self.cost), take(self.valid))

    def batches(self, size: int, device: str = "cpu") -> Iterator[tuple[Tensor, Batch]]:
        """Every view once, in order, with its indices."""
        for indices in torch.split(torch.arange(len(self)), size):
            yield indices, self.batch(indices, device)

    def chosen(self, keep_rows: Tensor) -> "Chosen":
        """The views of the rows where `keep_rows` (booleans over the frame) holds, not copied."""
        return Chosen(self, keep_rows[self.rows].nonzero()[:, 0])

    def subset(self, keep_rows: Tensor) -> "Examples":
        """A copy of the views of the rows where `keep_rows` holds."""
        chosen = keep_rows[self.rows].nonzero()[:, 0]
        kept = self.features
        return Examples(
            self.rows[chosen],
            None if self.images is None else self.images[chosen],
            None if kept is None else Features([x[chosen] for x in kept.levels], kept.target[chosen]),
            self.cost[chosen],
            self.valid[chosen],
        )


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some views of `examples`, which stay where they are."""

    examples: Examples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def rows(self) -> Tensor:
        """The row of the frame that each view comes from."""
        return self.examples.rows[self.indices]

    def batch(self, indices: Tensor, device: str = "cpu") -> Batch:
        return self.examples.batch(self.indices[indices], device)


def on_grid(valid_BSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Cells of which at least half are image, or of a very thin image those it covers best: B x S x S → B x grid."""
    share = F.adaptive_avg_pool2d(valid_BSS[:, None].float(), (grid[0], grid[1]))[:, 0]
    return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5)


def cells_of(valid_nSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`on_grid` of many views, 256 at a time: all at once are floats of a quarter megabyte each."""
    return torch.cat([on_grid(some, grid) for some in torch.split(valid_nSS, 256)])


def repeat_border(map_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Padding takes the value of the nearest image cell, as its pixels do, so that no smoothing carries anything else
    into the image. The valid cells of a view are a rectangle."""
    for dim in (1, 2):
        inside = valid_BHW.any(3 - dim).int()
        length = inside.shape[1]
        first, last = inside.argmax(1, keepdim=True), length - 1 - inside.flip(1).argmax(1, keepdim=True)
        index = torch.arange(length, device=map_BHW.device).expand_as(inside).clamp(first, last)
        map_BHW = map_BHW.gather(dim, index.unsqueeze(3 - dim).expand_as(map_BHW))
    return map_BHW


def views(rows: pd.DataFrame, data_root: Path, params: config.Image, what: str) -> Iterator[tuple[int, geometry.View]]:
    """Each view with the position of its row; images are decoded one after another."""
    for position, path in enumerate(track(rows["path"], what, total=len(rows))):
        for view in geometry.canvas(images.read(path, data_root, params.bits), params).views:
            yield position, view


def prepare(
    rows: pd.DataFrame,
    data_root: Path,
    image: config.Image,
    backbone: Backbone,
    measure: str,
    device: str = "cpu",
    store: Store | None = None,
) -> Examples:
    """The views of every image of `rows`: decoded and pushed through a frozen backbone, or as `store` has kept them.

    The result is the same to the last bit with and without a store. Raises `DataError` without rows, `IntegrityError`
    for an image that is not the one of its row's sha256 (where there is such a column).
    """
    if rows.empty:
        raise DataError("there are no training images: expected rows in the manifest with split train")
    store = store or Store()
    reader = Reader(data_root, image, backbone, measure, device, store)
    columns: dict[str, Column] = {}
    expected = rows["sha256"] if "sha256" in rows else [""] * len(rows)
    pairs = zip(rows["path"], expected, strict=True)
    for position, (path, sha256) in enumerate(track(pairs, "reading images", total=len(rows))):
        one = reader.read(path, sha256)
        for name, x in _columns(torch.full((len(one.valid),), position), one).items():
            columns.setdefault(name, Column(store.folder)).append(x)
    store.trim()
    return _examples({name: column.tensor() for name, column in columns.items()})


def retake(
    rows: pd.DataFrame, positions: list[int], data_root: Path, image: config.Image, backbone: Backbone, seed: int
) -> Examples:
    """The views of the images at some `positions` of `rows`, taken again (see `Reader.retake`)."""
    reader, columns = Reader(data_root, image, backbone, "none", "cpu", Store()), dict[str, Column]()
    for position in positions:
        path = str(rows["path"].iloc[position])
        one = reader.retake(path, seeding.numpy_generator(seed, "retake", path))
        for name, x in _columns(torch.full((len(one.valid),), position), one).items():
            columns.setdefault(name, Column()).append(x)
    return _examples({name: column.tensor() for name, column in columns.items()})


def _columns(rows: Tensor, one: Views) -> dict[str, Tensor]:
    cells = on_grid(one.valid, one.cost.shape[-2:])
    found = {"rows": rows, "cost": one.cost, "valid": one.valid, "cells": cells}
    if one.images is not None:
        found["images"] = one.images
    if one.features is not None:
        found |= {"target": one.features.target} | {f"level_{r}": x for r, x in enumerate(one.features.levels)}
    return found


def _examples(found: dict[str, Tensor]) -> Examples:
    levels = [found[f"level_{r}"] for r in range(sum(name.startswith("level_") for name in found))]
    return Examples(
        found["rows"],
        found.get("images"),
        Features(levels, found["target"]) if levels else None,
        richness.rescale(found["cost"].float(), found["cells"]),
        found["valid"],
    )
