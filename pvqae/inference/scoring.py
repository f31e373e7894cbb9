"""The only path from an image to its score; evaluation, calibration, the gate and the service all come through here.

V views of one image; H W its canvas; S side of a view; h w the coarsest grid of a view.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pvqae import config
from pvqae.datasets import images
from pvqae.inference import readout
from pvqae.inference.measures import Networks, Raw, join, measure
from pvqae.inference.readout import Readout
from pvqae.inference.statistics import SCALES, Normal
from pvqae.model.backbones import Backbone, Features
from pvqae.training.examples import repeat_border

Map = NDArray[np.float32]
PARTS = ("s_prior", "s_recon", "product")
CHUNK = 8  # views through the networks at once: memory does not grow with the image


@dataclass(frozen=True, eq=False)
class Scored:
    """One image's result. Maps and picture are drawn when asked for: most callers want one of them, or none."""

    sample_id: str
    image_score: float  # fused; compared with the calibrated threshold
    parts: dict[str, float]  # image scores of `PARTS`, s_prior and s_recon in deviations of training normals
    levels: NDArray[np.int64]  # h x w (of all views, stitched), spent; 0 is the coarsest, -1 padding
    expected_levels: NDArray[np.int64]  # h x w, the expected normal budget
    draw: Callable[[str], Map]  # of `PARTS` → H x W
    fused: str  # the part whose map is the fusion's
    canvas: images.Canvas

    @cached_property
    def anomaly_map(self) -> Map:
        """H x W, the map of the fusion."""
        return self.draw(self.fused)

    @cached_property
    def part_maps(self) -> dict[str, Map]:
        """`PARTS` → H x W."""
        return {name: self.anomaly_map if name == self.fused else self.draw(name) for name in PARTS}

    @cached_property
    def picture(self) -> NDArray[np.uint8]:
        """H x W x 3, what the model saw."""
        return _picture(self.canvas)


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and deviation of an image-level part over training normals."""

    mean: float
    deviation: float


@dataclass(frozen=True, eq=False)
class Scorer:
    """Networks with the statistics of normals; `image` and `score` are the params that it was fitted with."""

    networks: Networks
    normals: dict[str, Normal]  # by measure
    scales: dict[str, Scale]  # of s_prior and s_recon; empty only while they are being fitted
    image: config.Image
    score: config.Score

    def one(self, image: images.Floats, sample_id: str = "") -> Scored:
        """Score an image (H0, W0, 3) in [0, 1]."""
        canvas, raw = self.measured(image)
        return self.finish(raw, canvas, sample_id)

    def measured(self, image: images.Floats) -> tuple[images.Canvas, Raw]:
        """The canvas of an image (H0, W0, 3) in [0, 1], and all measures of its views."""
        canvas = images.canvas(image, self.image)
        some = (replace(canvas, views=canvas.views[i : i + CHUNK]) for i in range(0, len(canvas.views), CHUNK))
        return canvas, join([measure(self.networks, *through(self.networks.backbone, part)) for part in some])

    def from_features(self, features: Features, valid_BSS: Tensor, canvas: images.Canvas, sample_id: str) -> Scored:
        """Score an image whose views went through the backbone before; its picture is that of `canvas`."""
        return self.finish(measure(self.networks, features, valid_BSS), canvas, sample_id)

    def many(self, paths: Iterable[tuple[str, Path | str]], root: Path | None = None) -> Iterator[Scored]:
        """Score files one after another; (sample_id, path) pairs, paths below `root`. Memory does not grow."""
        for sample_id, path in paths:
            yield self.one(images.read(path, root), sample_id)

    def finish(self, raw: Raw, canvas: images.Canvas, sample_id: str) -> Scored:
        """From measures to the result: the steps that need the statistics."""
        shown = self.part_maps(raw, self.for_map)
        judged = shown if self.for_image == self.for_map else self.part_maps(raw, self.for_image)
        parts = self.image_parts({name: x[raw.cells] for name, x in judged.items()}, len(raw.levels))
        return Scored(
            sample_id,
            readout.FUSIONS[self.score.fusion](parts["s_recon"], parts["s_prior"], parts["product"]),
            parts,
            stitch_levels(canvas, raw.levels),
            stitch_levels(canvas, raw.expected),
            lambda name: images.stitch(canvas, self.smooth(shown[name])),
            readout.FUSION_MAP[self.score.fusion],
            canvas,
        )

    @property
    def for_image(self) -> Readout:
        return Readout(self.score.image_levels, self.score.image_scale)

    @property
    def for_map(self) -> Readout:
        return Readout(self.score.map_levels, self.score.map_scale)

    def scaled(self, raw: Raw, scale: str) -> dict[str, Tensor]:
        """Each measure in deviations of normals, by a key of `SCALES`; padding takes the border's values."""
        scaled = {name: SCALES[scale](self.normals[name], values) for name, values in raw.maps.items()}
        return {name: repeat_border(values, raw.valid[name]) for name, values in scaled.items()}

    def recon(self, maps: dict[str, Tensor], levels: str) -> Tensor:
        """The sum of the maps that count, on the finest grid of all, V x H x W."""
        grid = max((tuple(x.shape[-2:]) for x in maps.values()), key=lambda g: g[0])
        chosen = readout.RECON[self.score.recon](readout.counted(maps, levels))
        return torch.stack([_to_grid(x, grid) for x in chosen]).sum(0)

    def recon_map(self, raw: Raw, use: Readout) -> Tensor:
        """S_recon on the finest grid in deviations of normals, V x H x W."""
        return self.recon(self.scaled(raw, use.scale), use.levels)

    def part_maps(self, raw: Raw, use: Readout) -> dict[str, Tensor]:
        """The parts on the finest grid, V x H x W: recon and prior in deviations, their literal product as it is."""
        scaled = self.scaled(raw, use.scale)
        recon, plain = self.recon(scaled, use.levels), self.recon(self._relative(raw), use.levels)
        grid = recon.shape[-2:]
        return {
            "s_prior": _to_grid(scaled["prior"], grid),
            "s_recon": recon,
            "product": plain * _to_grid(repeat_border(raw.maps["prior"], raw.valid["prior"]), grid),
        }

    def _relative(self, raw: Raw) -> dict[str, Tensor]:
        """Measures over their normal mean: positive, and of one size across levels."""
        relative = {name: x / self.normals[name].global_mean.clamp_min(1e-6) for name, x in raw.maps.items()}
        return {name: repeat_border(values, raw.valid[name]) for name, values in relative.items()}

    def cell_maps(self, raw: Raw, use: Readout) -> dict[str, Tensor]:
        """The valid cells of each part for the image score, a flat tensor each."""
        parts = self.part_maps(raw, use)
        return {name: values[raw.cells] for name, values in parts.items()}

    def image_parts(self, cells: dict[str, Tensor], views: int) -> dict[str, float]:
        """Image scores of the parts from the cells of all `views`; s_prior and s_recon in deviations of training
        normals."""
        scores = {name: readout.top_mean(values, self.score.top, views) for name, values in cells.items()}
        for name, scale in self.scales.items():
            scores[name] = (scores[name] - scale.mean) / scale.deviation
        return scores

    def smooth(self, maps_VHW: Tensor) -> list[Map]:
        """Each view's map in its pixels, S x S, blurred by `score.blur` pixels."""
        smooth = torch.cat([self.blurred(view[None]) for view in maps_VHW])
        return [view.numpy() for view in self.enlarged(smooth)]

    def blurred(self, maps_VHW: Tensor) -> Tensor:
        """Maps on the finest grid, blurred by `score.blur` pixels of their views."""
        sigma = self.score.blur * maps_VHW.shape[-1] / self.image.size
        return readout.blur_all(maps_VHW, sigma) if sigma > 0 else maps_VHW

    def enlarged(self, maps_VHW: Tensor) -> Tensor:
        """Maps in the pixels of their views, V x S x S."""
        return _to_grid(maps_VHW, (self.image.size, self.image.size))


def through(backbone: Backbone, canvas: images.Canvas) -> tuple[Features, Tensor]:
    """The features of a canvas's views, and which of their pixels are image, V x S x S."""
    pixels = torch.from_numpy(np.stack([view.pixels for view in canvas.views]))
    valid = torch.from_numpy(np.stack([view.valid for view in canvas.views]))
    return backbone(pixels.contiguous(memory_format=torch.channels_last)), valid


def _to_grid(maps_VHW: Tensor, grid: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps_VHW[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def stitch_levels(canvas: images.Canvas, levels_Vhw: Tensor) -> NDArray[np.int64]:
    """One view: its grid as it is. Several: a grid over the canvas, each cell from the view with the nearest centre."""
    if len(canvas.views) == 1:
        return levels_Vhw[0].numpy()
    side = canvas.views[0].valid.shape[0]
    cell = side // levels_Vhw.shape[-1]
    out = np.full((max(1, canvas.height // cell), max(1, canvas.width // cell)), -1, dtype=np.int64)
    rows, columns = np.mgrid[: out.shape[0], : out.shape[1]] * cell + cell / 2
    best = np.full(out.shape, np.inf)
    for view, levels in zip(canvas.views, levels_Vhw.numpy(), strict=True):
        row, column = ((rows - view.top) // cell).astype(int), ((columns - view.left) // cell).astype(int)
        inside = (row >= 0) & (column >= 0) & (row < levels.shape[0]) & (column < levels.shape[1])
        away = np.hypot(rows - view.top - side / 2, columns - view.left - side / 2)
        nearer = inside & (away < best)
        best[nearer] = away[nearer]
        out[nearer] = levels[row[nearer], column[nearer]]
    return out


def _picture(canvas: images.Canvas) -> NDArray[np.uint8]:
    """The canvas as the model saw it, from its views."""
    out = np.zeros((canvas.height, canvas.width, 3), dtype=np.uint8)
    for view in canvas.views:
        row, column = max(view.top, 0), max(view.left, 0)
        part = view.pixels[:, row - view.top :, column - view.left :][:, : view.height, : view.width]
        height, width = part.shape[1:]
        out[row : row + height, column : column + width] = np.rint(part.transpose(1, 2, 0) * 255).astype(np.uint8)
    return out
