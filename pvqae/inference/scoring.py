"""The only path from an image to its score; evaluation, calibration, the gate and the service all come through here.

First how measures become maps and image scores: how far a value is from normal, how much it counts, how parts are
fused. Then the scorer, which does so for an image.

V views of one image; H W its canvas; S side of a view; h w the coarsest grid of a view; h_r w_r that of a measure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pvqae.core import config, runtime
from pvqae.inference.measures import Budget, Networks, Raw, measure
from pvqae.model.backbones import Backbone, Features, repeat_border
from pvqae.samples import geometry, images

_Map = NDArray[np.float32]
PARTS = ("s_prior", "s_recon", "product")
MEMORY_PARTS = ("s_recon",)  # of a detector without a trained network
_CHUNK = 4  # views that a thread takes through the networks at once: memory does not grow with the image


@dataclass(frozen=True, eq=False)
class Normal:
    """Statistics of one measure over training normals, none of which was judged by its own part's codes."""

    mean: Tensor  # h_r x w_r, per location
    deviation: Tensor  # h_r x w_r
    global_mean: Tensor  # scalar
    global_deviation: Tensor  # scalar, > 0


def _per_location(normal: Normal, values: Tensor) -> Tensor:
    """Return deviations from what is normal at that place: helps image scores where all parts are placed alike."""
    return (values - normal.mean) / normal.deviation


def _per_measure(normal: Normal, values: Tensor) -> Tensor:
    """Return deviations from what is normal anywhere: helps maps."""
    return (values - normal.global_mean) / normal.global_deviation


def _damped(normal: Normal, values: Tensor) -> Tensor:
    """Return deviations from the mean of that place, over a spread half of the place, half of all places.

    The place keeps its mean where parts are placed alike; where they are not, its own spread is noise.
    """
    spread = ((normal.deviation.square() + normal.global_deviation.square()) / 2).sqrt()
    return (values - normal.mean) / spread


def _least(normal: Normal, values: Tensor) -> Tensor:
    """Return the smaller of the deviations from that place and from any place: odd is what is odd by both."""
    return torch.minimum(_per_location(normal, values), _per_measure(normal, values))


SCALES: dict[str, Callable[[Normal, Tensor], Tensor]] = {
    "location": _per_location,
    "global": _per_measure,
    "damped": _damped,
    "least": _least,
}


@dataclass(frozen=True)
class Readout:
    """How measures become a map: the weight of each memory, and against which statistics of normals."""

    weights: Mapping[str, float] = field(hash=False)  # by name of a memory; one without a weight does not count
    scale: str  # key of SCALES

    def sum(self, maps: dict[str, Tensor], recon: str) -> list[Tensor]:
        """Return the weighted maps that add up to S_recon, `recon` a key of RECON.

        The decoder's residual has the weight 1. Each map is in deviations of normals.
        """
        weights = {"decoder": 1.0, **self.weights}
        return [weights[name] * maps[name] for name in maps if name in weights and RECON[recon](name)]


RECON: dict[str, Callable[[str], bool]] = {
    # Which measures, by their names, S_recon is made of.
    "memory": lambda name: name != "decoder",
    "decoder": lambda name: name == "decoder",
    "both": lambda name: True,
}


_Part = Callable[[str], float]  # s_recon | s_prior | product → its image score, computed when it is asked for


def _gated(part: _Part) -> float:
    """Add to S_recon a quarter of what the allocation exceeds the normal one by.

    It is never less than S_recon, so an uninformative prior adds noise of a quarter at most.
    """
    prior = part("s_prior")
    return part("s_recon") + 0.125 * (prior + abs(prior))  # a quarter of max(0, prior), for tensors, too


# Image scores of S_recon, S_prior and their cell-wise product (paper) → the image score. The first two are in
# deviations of normals.
FUSIONS: dict[str, Callable[[_Part], float]] = {
    "recon": lambda part: part("s_recon"),
    "prior": lambda part: part("s_prior"),
    "product": lambda part: part("product"),
    "gated": _gated,
}
# The map that goes with a fusion: adding the coarse prior to the map blurs it, so only its literal forms do.
FUSION_MAP = {"recon": "s_recon", "prior": "s_prior", "product": "product", "gated": "s_recon"}


def top_mean(values: Tensor, share: float, views: int = 1) -> float:
    """Return the mean of the highest values, at least one: `share` of the number that one of the `views` has.

    With a share of all views, one small defect would weigh less, the more views an image has.
    """
    count = max(1, round(share * values.numel() / views))
    return float(values.flatten().topk(count).values.mean())


def blur(map_HW: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian of `sigma` cells, edges reflected."""
    return blur_all(map_HW[None], sigma)[0]


def blur_all(maps_BHW: Tensor, sigma: float) -> Tensor:
    """Blur a batch as `blur` does; the last bits depend on the batch's size."""
    radius = min(max(1, round(3 * sigma)), min(maps_BHW.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=maps_BHW.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(maps_BHW[:, None], (radius,) * 4, mode="reflect")
    once = torch.nn.functional.conv2d(padded, kernel[None, None, None, :])
    return torch.nn.functional.conv2d(once, kernel[None, None, :, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Scored:
    """One image's result. All but the score is computed when it is asked for: most callers want one map, or none."""

    sample_id: str
    image_score: float  # fused; compared with the calibrated threshold
    part: Callable[[str], float]  # of `PARTS` → image score
    budget: Callable[[], Budget] | None  # of the views of `canvas`; None where no network was trained
    draw: Callable[[str], _Map]  # of `PARTS` → H x W
    fused: str  # the part whose map is the fusion's
    canvas: geometry.Canvas

    @property
    def allocates(self) -> bool:
        """Whether a network was trained: without one there are no levels, and no parts but the memory's."""
        return self.budget is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that there are."""
        return PARTS if self.allocates else MEMORY_PARTS

    @cached_property
    def parts(self) -> dict[str, float]:
        """Image scores of `names`, s_prior and s_recon in deviations of training normals."""
        return {name: self.part(name) for name in self.names}

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """H x w (of all views, stitched), spent; 0 is the coarsest, -1 padding. Only where it `allocates`."""
        assert self.budget is not None
        return stitch_levels(self.canvas, self.budget().levels)

    @cached_property
    def expected_levels(self) -> NDArray[np.int64]:
        """H x w, the expected normal budget. Only where it `allocates`."""
        assert self.budget is not None
        return stitch_levels(self.canvas, self.budget().expected)

    @cached_property
    def anomaly_map(self) -> _Map:
        """H x W, the map of the fusion."""
        return self.draw(self.fused)

    @cached_property
    def part_maps(self) -> dict[str, _Map]:
        """`names` → H x W."""
        return {name: self.anomaly_map if name == self.fused else self.draw(name) for name in self.names}

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

    def measured(self, image: images.Floats) -> tuple[geometry.Canvas, Raw]:
        """Return the canvas of an image (H0, W0, 3) in [0, 1], and all measures of its views."""
        canvas = geometry.canvas(image, self.image)
        some = [replace(canvas, views=canvas.views[i : i + _CHUNK]) for i in range(0, len(canvas.views), _CHUNK)]

        @torch.no_grad()
        def run(part: geometry.Canvas) -> Raw:
            return measure(self.networks, *through(self.networks.backbone, part))

        if len(some) == 1:
            return canvas, run(canvas)
        # Of many views no run may wait with its features for a question that perhaps nobody asks.
        runs = runtime.in_order(lambda part: run(part).settled(), some, torch.get_num_threads())
        return canvas, Raw.joined(runs, len(canvas.views))

    def from_features(self, features: Features, valid_BSS: Tensor, canvas: geometry.Canvas, sample_id: str) -> Scored:
        """Score an image whose views went through the backbone before; its picture is that of `canvas`."""
        return self.finish(measure(self.networks, features, valid_BSS), canvas, sample_id)

    @property
    def at_once(self) -> int:
        """How many images are scored at once: as many as PyTorch has threads, with one for each. One image where it is
        tiled: its views share the threads, and several large images would not share the memory.
        """
        return 1 if self.image.aspect == "tile" else torch.get_num_threads()

    def many(self, paths: Iterable[tuple[str, Path | str]], root: Path | None = None) -> Iterator[Scored]:
        """Score files in their order, `at_once` of them; (sample_id, path) pairs, paths below `root`. Memory does not
        grow.
        """

        def work(pair: tuple[str, Path | str]) -> Scored:
            return self.one(images.read(pair[1], root, self.image.bits), pair[0])

        return runtime.in_order(work, paths, self.at_once)

    def finish(self, raw: Raw, canvas: geometry.Canvas, sample_id: str) -> Scored:
        """Turn measures into the result: the steps that need the statistics of normals."""
        part_map = cache(partial(self.part_map, raw))  # image score and map may read the same

        def image_part(name: str) -> float:
            return self.image_part(name, part_map(self.for_image, name)[raw.cells], len(raw.cells))

        def draw(name: str) -> _Map:
            return canvas.stitch(self.smooth(part_map(self.for_map, name)))

        fused, score = FUSION_MAP[self.score.fusion], FUSIONS[self.score.fusion](image_part)
        budget = raw.ask and (lambda: raw.budget)
        return Scored(sample_id, score, image_part, budget, draw, fused, canvas)

    @property
    def for_image(self) -> Readout:
        return Readout(self.score.image, self.score.image_scale)

    @property
    def for_map(self) -> Readout:
        return Readout(self.score.map, self.score.map_scale)

    def scaled(self, raw: Raw, scale: str) -> dict[str, Tensor]:
        """Return the maps in deviations of normals, by a key of `SCALES`; padding takes the border's values."""
        scaled = {name: SCALES[scale](self.normals[name], values) for name, values in raw.maps.items()}
        return {name: repeat_border(values, raw.valid[name]) for name, values in scaled.items()}

    def recon(self, maps: dict[str, Tensor], use: Readout) -> Tensor:
        """Return the weighted sum of the maps that count, on the finest grid of all, V x H x W."""
        grid = max((tuple(x.shape[-2:]) for x in maps.values()), key=lambda g: g[0])
        return torch.stack([_to_grid(x, grid) for x in use.sum(maps, self.score.recon)]).sum(0)

    def recon_map(self, raw: Raw, use: Readout) -> Tensor:
        """Return S_recon on the finest grid in deviations of normals, V x H x W."""
        return self.recon(self.scaled(raw, use.scale), use)

    def prior_map(self, raw: Raw, use: Readout) -> Tensor:
        """Return S_prior on the finest grid in deviations of normals, V x H x W."""
        return self._unlikely(raw, SCALES[use.scale](self.normals["prior"], raw.budget.unlikely))

    def product_map(self, raw: Raw, use: Readout) -> Tensor:
        """Return the literal S_prior x S_recon on the finest grid, V x H x W; both positive, not in deviations."""
        return self.recon(self._relative(raw), use) * self._unlikely(raw, raw.budget.unlikely)

    def part_map(self, raw: Raw, use: Readout, name: str) -> Tensor:
        """Return the map of one of `PARTS` on the finest grid, V x H x W."""
        maps = {"s_prior": self.prior_map, "s_recon": self.recon_map, "product": self.product_map}
        return maps[name](raw, use)

    @staticmethod
    def _unlikely(raw: Raw, values_Vhw: Tensor) -> Tensor:
        return _to_grid(repeat_border(values_Vhw, raw.budget.valid), raw.cells.shape[-2:])

    def _relative(self, raw: Raw) -> dict[str, Tensor]:
        """Return the maps over their normal mean: positive, and of one size across levels."""
        relative = {name: x / self.normals[name].global_mean.clamp_min(1e-6) for name, x in raw.maps.items()}
        return {name: repeat_border(values, raw.valid[name]) for name, values in relative.items()}

    def image_part(self, name: str, cells: Tensor, views: int) -> float:
        """Return the image score of a part from the valid cells of all `views`.

        s_prior and s_recon are in deviations of training normals.
        """
        score = top_mean(cells, self.score.top, views)
        scale = self.scales.get(name)
        return score if scale is None else (score - scale.mean) / scale.deviation

    def smooth(self, maps_VHW: Tensor) -> Iterator[_Map]:
        """Yield each view's map in its pixels, S x S, blurred by `score.blur` pixels: one at a time, for all of them
        are larger than the image.
        """
        for view_HW in maps_VHW:
            yield self.enlarged(self.blurred(view_HW[None]))[0].numpy()

    def blurred(self, maps_VHW: Tensor) -> Tensor:
        """Return maps on the finest grid, blurred by `score.blur` pixels of their views."""
        sigma = self.score.blur * maps_VHW.shape[-1] / self.image.size
        return blur_all(maps_VHW, sigma) if sigma > 0 else maps_VHW

    def enlarged(self, maps_VHW: Tensor) -> Tensor:
        """Return maps in the pixels of their views, V x S x S."""
        return _to_grid(maps_VHW, (self.image.size, self.image.size))


def through(backbone: Backbone, canvas: geometry.Canvas) -> tuple[Features, Tensor]:
    """Return the features of a canvas's views, and which of their pixels are image, V x S x S."""
    pixels = torch.from_numpy(np.stack([view.pixels for view in canvas.views]))
    valid = torch.from_numpy(np.stack([view.valid for view in canvas.views]))
    return backbone(pixels.contiguous(memory_format=torch.channels_last)), valid


def _to_grid(maps_VHW: Tensor, grid: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps_VHW[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def stitch_levels(canvas: geometry.Canvas, levels_Vhw: Tensor) -> NDArray[np.int64]:
    """Return the levels of the canvas, -1 where no view has a cell.

    One view's grid is returned as it is; of several views each cell comes from the one with the nearest centre.
    """
    if len(canvas.views) == 1:
        return levels_Vhw[0].numpy()
    side = canvas.views[0].side
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


def _picture(canvas: geometry.Canvas) -> NDArray[np.uint8]:
    """Return the canvas as the model saw it, from its views."""
    out = np.zeros((canvas.height, canvas.width, 3), dtype=np.uint8)
    for view in canvas.views:
        out[view.place] = np.rint(view.pixels.transpose(1, 2, 0)[view.inside] * 255).astype(np.uint8)
    return out
