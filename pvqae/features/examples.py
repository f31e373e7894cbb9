"""The images of some manifest rows as the network reads them, decoded and pushed through the backbone once.

n views (one per image, several where images are tiled); R levels; h w coarsest grid; H W finest; S side of a view.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pvqae.core import config, runtime, seeding
from pvqae.core.errors import DataError
from pvqae.core.progress import track
from pvqae.datasets import splits
from pvqae.features import richness
from pvqae.features.features import Reader, Store, Views
from pvqae.model.backbones import Backbone, Features, cells_of, on_grid
from pvqae.samples import geometry, images

_BOUND = 2**28  # bytes of one column that are kept in memory
_RANGED, _OF_ONE = 64, 4  # images that ranges are taken from; about so many views of one


@dataclass(frozen=True, eq=False)
class Batch:
    """One training step's input on the device."""

    images: Tensor | None  # B x 3 x S x S, where the backbone itself is trained
    features: Features | None  # where it is frozen
    cost: Tensor  # B x h x w in [0, 1]
    valid: Tensor  # B x S x S; False on padding

    def mirrored(self) -> "Batch":
        """Mirror left-right; of frozen features the mirror is approximate, and good enough."""
        kept = self.features
        return Batch(
            None if self.images is None else self.images.flip(-1),
            None if kept is None else Features([x.flip(-1) for x in kept.levels], kept.target.flip(-1)),
            self.cost.flip(-1),
            self.valid.flip(-1),
        )


class Learned(Protocol):
    """What a fit learns from: n views."""

    def __len__(self) -> int: ...

    @property
    def rows(self) -> Tensor:
        """The row of the frame that each view comes from, n."""
        ...

    def batch(self, indices: Tensor, device: str = "cpu") -> Batch:
        """Return the views at `indices` as float32 on `device`."""
        ...

    def batches(self, size: int, device: str = "cpu") -> Iterator[tuple[Tensor, Batch]]:
        """Yield every view once, in order, with its indices."""
        ...

    def cells(self, grid: tuple[int, ...]) -> Tensor:
        """Return the cells of a grid that are image, booleans of n x grid: see `on_grid`."""
        ...


class _Batches:
    def batches(self: Learned, size: int, device: str = "cpu") -> Iterator[tuple[Tensor, Batch]]:
        """Yield every view once, in order, with its indices."""
        for indices in torch.split(torch.arange(len(self)), size):
            yield indices, self.batch(indices, device)


@dataclass(frozen=True, eq=False)
class Examples(_Batches):
    """All views: half precision, about 1 MB of features per view at 256 px; many are in files (`_Column`)."""

    rows: Tensor  # n, the row of the frame that each view comes from
    images: Tensor | None
    features: Features | None
    cost: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, device: str = "cpu") -> Batch:
        """Return the views at `indices` as float32 on `device`."""

        def take(x: Tensor) -> Tensor:
            chosen = x[indices].to(device)
            return chosen.float() if chosen.is_floating_point() else chosen

        kept = self.features
        features = None if kept is None else Features([take(x) for x in kept.levels], take(kept.target))
        return Batch(None if self.images is None else take(self.images), features, take(self.cost), take(self.valid))

    def cells(self, grid: tuple[int, ...]) -> Tensor:
        return cells_of(self.valid, grid)

    def chosen(self, keep_rows: Tensor) -> "_Chosen":
        """Return the views of the rows where `keep_rows` (booleans over the frame) holds, not copied."""
        return _Chosen(self, keep_rows[self.rows].nonzero()[:, 0])

    def subset(self, keep_rows: Tensor) -> "Examples":
        """Return a copy of the views of the rows where `keep_rows` holds."""
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
class _Chosen(_Batches):
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

    def cells(self, grid: tuple[int, ...]) -> Tensor:
        return torch.cat([on_grid(self.examples.valid[some], grid) for some in torch.split(self.indices, 256)])


class _Column:
    """Tensors of one shape but for the first axis, appended one by one and read as one; beyond a bound they are in an
    anonymous memory-mapped file, which the system reads as it is asked.

    One network for all classes sees every class's views, a megabyte each; 3,600 of them would fill a small machine
    twice.
    """

    def __init__(self, folder: Path | None = None, bound: int = _BOUND):
        """Keep `bound` bytes in memory, the rest in a file in `folder`, None for the temporary one."""
        self._folder, self._bound, self._size = folder, bound, 0
        self._parts: list[Tensor] = []
        self._file: IO[bytes] | None = None

    def append(self, rows: Tensor) -> None:
        """Add rows of the shape and dtype of those before."""
        self._parts.append(rows.contiguous())
        self._size += rows.numel() * rows.element_size()
        if self._size > self._bound:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it lives as long as its tensor
        for part in self._parts:
            self._file.write(part.numpy().tobytes())
        self._parts = [self._parts[-1][:0]]  # dtype and shape

    def tensor(self) -> Tensor:
        """Return all rows, once: nothing can be appended later."""
        if self._file is None:
            return torch.cat(self._parts)
        self._write()
        last = self._parts[-1]
        with self._file as file:  # what is mapped stays without it
            file.flush()
            rows = np.memmap(file, last.numpy().dtype, "c")  # copy on write: torch warns of read-only arrays
        return torch.from_numpy(rows.reshape(-1, *last.shape[1:]))


def views(rows: pd.DataFrame, data_root: Path, params: config.Image, what: str) -> Iterator[tuple[int, geometry.View]]:
    """Yield each view with the position of its row; images are decoded one after another."""
    for position, path in enumerate(track(rows["path"], what, total=len(rows))):
        for view in geometry.canvas(images.read(path, data_root, params.bits), params).views:
            yield position, view


def quantise(backbone: Backbone, rows: pd.DataFrame, data_root: Path, params: config.Params) -> None:
    """Give a network of 8 bit the ranges of normals; one of float32 stays as it is.

    They come from `_RANGED` images at most, spread over those of `rows`, with column `fold`, that the full fit learns.
    """
    if params.model.precision != "int8":
        return
    taught, image = rows[splits.learns(rows, splits.FULL)], params.image
    some = taught.iloc[np.unique(np.linspace(0, len(taught) - 1, _RANGED).round().astype(int))]

    def of_image(path: str) -> Iterator[Tensor]:
        views = geometry.canvas(images.read(path, data_root, image.bits), image).views
        for view in views[:: max(1, len(views) // _OF_ONE)]:
            yield torch.from_numpy(view.pixels[None])

    paths = track(some["path"], "ranges", total=len(some))
    backbone.quantise(backbone.ranges(view for path in paths for view in of_image(path)))


def prepare(
    rows: pd.DataFrame,
    data_root: Path,
    image: config.Image,
    backbone: Backbone,
    measure: str,
    device: str = "cpu",
    store: Store | None = None,
) -> Examples:
    """Return the views of every image of `rows`: decoded and pushed through a frozen backbone, or as `store` has kept
    them.

    The result is the same to the last bit with and without a store. Raises `DataError` without rows, `IntegrityError`
    for an image that is not the one of its row's sha256 (where there is such a column).
    """
    if rows.empty:
        raise DataError("there are no training images: expected rows in the manifest with split train")
    store = store or Store()
    reader = Reader(data_root, image, backbone, measure, device, store)
    columns: dict[str, _Column] = {}
    expected = rows["sha256"] if "sha256" in rows else [""] * len(rows)
    pairs = zip(rows["path"], expected, strict=True)
    for position, (path, sha256) in enumerate(track(pairs, "reading images", total=len(rows))):
        one = reader.read(path, sha256)
        for name, x in _columns(torch.full((len(one.valid),), position), one).items():
            columns.setdefault(name, _Column(store.folder)).append(x)
    store.trim()
    found = {name: columns.pop(name).tensor() for name in list(columns)}  # none is there twice with all others
    runtime.release_memory()
    return _examples(found)


def retake(
    rows: pd.DataFrame, positions: list[int], data_root: Path, image: config.Image, backbone: Backbone, seed: int
) -> Examples:
    """Return the views of the images at some `positions` of `rows`, taken again (see `Reader.retake`)."""
    reader, columns = Reader(data_root, image, backbone, "none", "cpu", Store()), dict[str, _Column]()
    for position in positions:
        path = str(rows["path"].iloc[position])
        one = reader.retake(path, seeding.numpy_generator(seed, "retake", path))
        for name, x in _columns(torch.full((len(one.valid),), position), one).items():
            columns.setdefault(name, _Column()).append(x)
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
