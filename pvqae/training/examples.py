"""The images of some manifest rows as the network reads them, decoded and pushed through the backbone once.

n views (one per image, several where images are tiled); R levels; h w coarsest grid; H W finest; S side of a view.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae import config
from pvqae.datasets import images
from pvqae.errors import DataError
from pvqae.model.backbones import Backbone, Features
from pvqae.progress import track
from pvqae.training import richness

CHUNK = 16  # views through the backbone at once


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


@dataclass(frozen=True, eq=False)
class Examples:
    """All views in memory: half precision, about 1.3 MB of features per view at 256 px."""

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

    def subset(self, keep_rows: Tensor) -> "Examples":
        """The views of the rows where `keep_rows` (booleans over the frame) holds."""
        chosen = keep_rows[self.rows].nonzero()[:, 0]
        kept = self.features
        return Examples(
            self.rows[chosen],
            None if self.images is None else self.images[chosen],
            None if kept is None else Features([x[chosen] for x in kept.levels], kept.target[chosen]),
            self.cost[chosen],
            self.valid[chosen],
        )


def on_grid(valid_BSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Cells of which at least half are image, or of a very thin image those it covers best: B x S x S → B x grid."""
    share = F.adaptive_avg_pool2d(valid_BSS[:, None].float(), (grid[0], grid[1]))[:, 0]
    return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5)


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


def views(rows: pd.DataFrame, data_root: Path, params: config.Image, what: str) -> Iterator[tuple[int, images.View]]:
    """Each view with the position of its row; images are decoded one after another."""
    for position, path in enumerate(track(rows["path"], what, total=len(rows))):
        for view in images.canvas(images.read(path, data_root), params).views:
            yield position, view


def chunks(items: Iterator[tuple[int, images.View]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Rows, pixels B x 3 x S x S and validity B x S x S of up to `CHUNK` views at a time."""
    held: list[tuple[int, images.View]] = []
    for item in items:
        held.append(item)
        if len(held) == CHUNK:
            yield _stack(held)
            held = []
    if held:
        yield _stack(held)


def _stack(held: list[tuple[int, images.View]]) -> tuple[list[int], Tensor, Tensor]:
    pixels = torch.from_numpy(np.stack([view.pixels for _, view in held]))
    return [row for row, _ in held], pixels, torch.from_numpy(np.stack([view.valid for _, view in held]))


def prepare(
    rows: pd.DataFrame, data_root: Path, image: config.Image, backbone: Backbone, measure: str, device: str = "cpu"
) -> Examples:
    """Decode every image of `rows` once; frozen features are computed here and never again."""
    if rows.empty:
        raise DataError("there are no training images: expected rows in the manifest with split train")
    parts: list[Examples] = []
    for owners, pixels, valid in chunks(views(rows, data_root, image, "reading images")):
        cost = richness.cost(pixels, measure).half()
        kept = None
        if backbone.spec.frozen:
            found = backbone(pixels.to(device).contiguous(memory_format=torch.channels_last))
            kept = Features([x.half().cpu() for x in found.levels], found.target.half().cpu())
        parts.append(Examples(torch.tensor(owners), None if kept else pixels.half(), kept, cost, valid))
    return _concatenate(parts)


def _concatenate(parts: list[Examples]) -> Examples:
    features = [part.features for part in parts if part.features is not None]
    pixels = [part.images for part in parts if part.images is not None]
    valid, cost = torch.cat([p.valid for p in parts]), torch.cat([p.cost for p in parts]).float()
    return Examples(
        torch.cat([part.rows for part in parts]),
        torch.cat(pixels) if pixels else None,
        Features(
            [torch.cat(x) for x in zip(*(f.levels for f in features), strict=True)],
            torch.cat([f.target for f in features]),
        )
        if features
        else None,
        richness.rescale(cost, on_grid(valid, cost.shape[-2:])),
        valid,
    )
