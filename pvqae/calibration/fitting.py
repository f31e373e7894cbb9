"""Fit what is not learned by gradient: memory, whitening and statistics of normals → a `Scorer`.

n views of the normals of one class.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pvqae.calibration.normals import CellSample, PlaceSums, fit_memory, fit_statistics, floor, residual_whitening
from pvqae.calibration.thresholds import collapsed_codebook, collapsed_levels
from pvqae.core import config, runtime
from pvqae.core.layout import Layout
from pvqae.core.tensors import read_tensors
from pvqae.datasets import splits
from pvqae.features.examples import Batch, Learned
from pvqae.inference import measures
from pvqae.inference.scoring import Scale, Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder, nearest
from pvqae.model.backbones import Features, on_grid
from pvqae.prior.prior import from_tensors

_FEW = 4  # views at once
_RESIDUALS = 20000  # cells that the covariance is taken from; more change nothing


def load_networks(
    layout: Layout, params: config.Params, network: str, prior: str, fits: list[str]
) -> dict[str, measures.Networks]:
    """Load what each fit reads of what was trained, its memory still empty.

    A fold only judges images, so where the score reads no network it has none: it can't move a threshold. A frozen
    backbone is one for all: each would be compiled for itself, tens of megabytes a thread.
    """
    first = _backbone(layout, params, network)
    own = {fit: first if first.spec.frozen else _backbone(layout, params, network) for fit in fits}
    return {fit: _trained(layout, params, network, prior, fit, own[fit]) for fit in fits}


def _backbone(layout: Layout, params: config.Params, network: str) -> backbones.Backbone:
    backbone = backbones.make(params.model, size=params.image.size).eval()
    if params.model.precision == "int8":
        backbone.quantise(json.loads((layout.network(network) / backbones.RANGES).read_text("utf-8")))
    return backbone


def _trained(
    layout: Layout, params: config.Params, network: str, prior: str, fit: str, backbone: backbones.Backbone
) -> measures.Networks:
    folder, read = layout.network(network), fit == splits.FULL or params.score.reads_network
    if not (read and (folder / "allocations.safetensors").exists()):
        return measures.Networks(backbone, None, {}, None)
    autoencoder = Autoencoder.from_tensors(read_tensors(folder / f"{fit}.safetensors"), params.model, backbone)
    side = params.image.size // 32
    weights = layout.prior(prior) / f"{fit}.safetensors"
    learned = from_tensors(read_tensors(weights), (side, side), params.model.levels, params.prior.width)
    return measures.Networks(backbone, measures.Allocator(autoencoder, learned, params.score.prior), {}, None)


def _features(backbone: backbones.Backbone, batch: Batch) -> Features:
    features: Features = batch.features if batch.features is not None else backbone(batch.images)
    return features


@dataclass(frozen=True, eq=False)
class _Measured:
    """What a fit measured of some of its training images."""

    rows: Tensor  # n, the row of the frame that each view comes from
    raw: list[measures.Raw]  # of the views, in their order, several in each

    def values(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a measure of all views, and which of its cells are image, n x h_r x w_r each."""
        if name == "prior":
            return torch.cat([r.budget.unlikely for r in self.raw]), torch.cat([r.budget.valid for r in self.raw])
        return torch.cat([r.maps[name] for r in self.raw]), torch.cat([r.valid[name] for r in self.raw])

    def scores(self, scorer: Scorer, name: str) -> "pd.Series[float]":
        """Return the image scores of a part by row, each image from all its views."""
        views = [batch.view(index) for batch in self.raw for index in range(len(batch.cells))]
        cells: dict[int, list[Tensor]] = {}
        for row, view in zip(self.rows.tolist(), views, strict=True):
            cells.setdefault(row, []).append(scorer.part_map(view, scorer.for_image, name)[view.cells])
        return pd.Series({row: scorer.image_part(name, torch.cat(parts), len(parts)) for row, parts in cells.items()})


def fit(
    found: measures.Networks,
    examples: Learned,
    groups_n: Tensor,
    params: config.Params,
    name: str,
    retaken: Learned | None = None,
) -> Scorer:
    """Fit a scorer whose memories and statistics come from `examples` only.

    `groups_n` numbers each view's group. `retaken`: some of their images again, all views of each. Few or nearly equal
    normals have deviations near zero by chance or by geometry (fewer cells than channels are all equally far from each
    other), and every score in them is huge. So no deviation is below what the measure of an image changes by when it is
    `retaken`: what a camera can't tell apart, the detector need not.
    """
    if params.score.recon in ("memory", "both"):
        found = replace(found, memories=fit_memories(found.backbone, examples, groups_n, params, name))
    if params.score.recon in ("decoder", "both"):
        found = replace(found, whitening=decoder_whitening(found, examples))
    seen = _Measured(examples.rows, list(_measured(found, examples, groups_n)))
    again = None
    if retaken is not None:
        owners = dict(zip(examples.rows.tolist(), groups_n.tolist(), strict=True))
        own = torch.tensor([owners[row] for row in retaken.rows.tolist()])
        again = _Measured(retaken.rows, list(_measured(found, retaken, own)))
    names, parts = [*seen.raw[0].maps], ["s_recon"]
    if found.allocator is not None:
        names, parts = [*names, "prior"], ["s_prior", *parts]
    normals = {name: fit_statistics(*seen.values(name), _grain(seen, again, name)) for name in names}
    scorer = Scorer(found, normals, {}, params.image, params.score)
    return replace(scorer, scales={part: _scale(scorer, seen, again, part) for part in parts})


def settled(scorer: Scorer) -> Scorer:
    """Return the scorer without what only judges the normals that it was fitted to: most of the memory of places."""
    kept = {name: memory.settled() for name, memory in scorer.networks.memories.items()}
    return replace(scorer, networks=replace(scorer.networks, memories=kept))


def _scale(scorer: Scorer, seen: _Measured, again: _Measured | None, name: str) -> Scale:
    """Return the scale of an image-level part over the normals."""
    scores, grain = seen.scores(scorer, name), 0.0
    if again is not None:
        retaken = again.scores(scorer, name)
        grain = float(((retaken - scores[retaken.index]) ** 2).mean() ** 0.5)
    mean = float(scores.mean())
    return Scale(mean, max(floor(mean, grain), float(scores.std(ddof=0))))


def _grain(seen: _Measured, again: _Measured | None, name: str) -> float:
    """Return the root mean square of how much a measure changes when images are taken again."""
    if again is None:
        return 0.0
    (before, valid), (after, _) = seen.values(name), again.values(name)
    twins = torch.isin(seen.rows, again.rows)
    return float((after - before[twins])[valid[twins]].square().mean().sqrt())


@torch.no_grad()
def fit_memories(
    backbone: backbones.Backbone, examples: Learned, groups_n: Tensor, params: config.Params, fit: str
) -> dict[str, measures.AnyMemory]:
    """Fit the memories that the score reads. `groups_n` numbers each view's group."""
    settings, samples, vectors = params.memory, dict[str, CellSample](), defaultdict[str, list[Tensor]](list)
    places = PlaceSums(groups_n, settings.width, params.seed)
    names = measures.memory_names(backbone, params.score.image, params.score.map)
    for indices, batch in examples.batches(_FEW):
        features = _features(backbone, batch)
        for name in names:
            x = measures.memory_input(backbone, features, name)
            if name == measures.PLACE:
                places.add(x, on_grid(batch.valid, x.shape[-2:]), groups_n[indices])
                continue
            if name not in samples:
                label = f"{fit}/{name}"
                samples[name] = CellSample.draw(examples.cells(x.shape[-2:]), settings.patches, params.seed, label)
            vectors[name].append(samples[name].vectors(x, int(indices[0])))
    how = settings.codes, settings.width, params.seed, settings.neighbours

    def fitted(name: str) -> measures.AnyMemory:
        if name == measures.PLACE:
            return places.fitted()
        return fit_memory(torch.cat(vectors.pop(name)), groups_n[samples[name].views], *how)

    return {name: fitted(name) for name in names}


@torch.no_grad()
def decoder_whitening(found: measures.Networks, examples: Learned) -> Tensor:
    """Return what whitens the decoder's residuals of normals, T x T."""
    kept, passed, step, allocator = [], 0, 0, found.trained
    for _, batch in examples.batches(_FEW):
        features = _features(found.backbone, batch)
        levels = allocator.autoencoder.allocate(allocator.autoencoder.codes(features)).levels
        left = measures.residual(allocator, features, levels, batch.valid)
        cells = left.movedim(1, -1)[on_grid(batch.valid, left.shape[-2:])]
        step = step or max(1, int(examples.cells(left.shape[-2:]).sum()) // _RESIDUALS)
        kept.append(cells[-passed % step :: step])  # every step-th of all
        passed += len(cells)
    return residual_whitening(torch.cat(kept)).half().float()


def _measured(found: measures.Networks, examples: Learned, groups_n: Tensor) -> Iterator[measures.Raw]:
    @torch.no_grad()
    def work(pair: tuple[Tensor, Batch]) -> measures.Raw:
        indices, batch = pair
        return measures.measure(found, _features(found.backbone, batch), batch.valid, groups_n[indices]).settled()

    # A thread each, as scores are made: products of one view's cells keep several threads waiting for each other.
    return runtime.in_order(work, examples.batches(_FEW), torch.get_num_threads())


@torch.no_grad()
def health(found: measures.Networks, examples: Learned, facts: dict[str, float | None]) -> dict[str, Any]:
    """Return level shares, codebook usage, the prior's cross-entropies, and a warning for each collapse.

    Where nothing was trained there are no shares, and the usage is None.
    """
    if found.allocator is None:
        return {"level_shares": [], "codebook_usage": None, **facts, "warnings": []}
    autoencoder = found.allocator.autoencoder
    counts = torch.zeros(len(autoencoder.spec.channels), dtype=torch.float64)
    uses = torch.zeros(len(autoencoder.codebook.codes), dtype=torch.bool)
    for _, batch in examples.batches(_FEW):
        codes = autoencoder.codes(_features(found.backbone, batch))
        allocation = autoencoder.allocate(codes)
        vectors = autoencoder.merged(codes, allocation.onehot, on_grid(batch.valid, codes[-1].shape[-2:]))
        coarse = on_grid(batch.valid, allocation.onehot.shape[-2:])
        counts += torch.bincount(allocation.levels[coarse], minlength=len(counts))
        uses[nearest(vectors, autoencoder.codebook.codes)[1]] = True
    shares = [round(s, 6) for s in (counts / counts.sum()).tolist()]
    used = round(float(uses.float().mean()), 6)
    warnings = _collapse(shares, used)
    return {"level_shares": shares, "codebook_usage": used, **facts, "warnings": warnings}


def _collapse(level_shares: list[float], codebook_usage: float) -> list[str]:
    """Return a warning for each way in which the mechanism has stopped working; empty if it works."""
    words = []
    if collapsed_levels(level_shares):
        words.append(
            f"collapse: level {level_shares.index(max(level_shares))} has {max(level_shares):.1%} of the cells, so the "
            "allocation says nothing; change train.kappa or train.steps"
        )
    if collapsed_codebook(codebook_usage):
        words.append(f"collapse: {codebook_usage:.1%} of the codebook is in use; lower model.codes or train longer")
    return words


def group_numbers(rows: pd.DataFrame, examples: Learned) -> Tensor:
    """Return the number of each view's group."""
    numbers = pd.factorize(rows["group_id"])[0]
    return torch.from_numpy(numbers)[examples.rows]
