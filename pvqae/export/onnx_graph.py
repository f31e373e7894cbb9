"""The scoring code as one graph over a batch of views: the functions of `scoring` themselves, wrapped for ONNX.

Nothing is computed in another way than there, but what a graph can't say: a loop over the views of a batch, a selection
of an unknown number of cells, a branch on a value. Those few steps have a form for all views at once here.
B views; S side of a view; H W the finest grid, h w the coarsest; N = h*w; R levels; k clusters.
"""

from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core import config
from pvqae.inference import scoring
from pvqae.inference.measures import Allocator, Memory, PlaceMemory, measure
from pvqae.inference.scoring import MEMORY_PARTS, PARTS, Scorer
from pvqae.model.autoencoder import Allocation, Autoencoder, Output, merge, nearest
from pvqae.prior.prior import BudgetPrior, Clustered, Expected, Prior


class Outputs(NamedTuple):
    """What the graph gives, in this order. Each view is judged as an image of its own; `*_cells` are what image scores
    are made of, so that the views of one image can be judged together.
    """

    image_score: Tensor  # B, fused
    margin: Tensor  # B, image_score - threshold; above 0 is a defect
    anomaly_map: Tensor  # B x S x S, of the fusion, blurred; means nothing on padding
    s_prior: Tensor  # B, in deviations of training normals
    s_recon: Tensor  # B, in deviations of training normals
    product: Tensor  # B
    s_prior_cells: Tensor  # B x H x W
    s_recon_cells: Tensor  # B x H x W
    product_cells: Tensor  # B x H x W
    valid_cells: Tensor  # B x H x W, booleans
    levels: Tensor  # B x h x w, spent; 0 is the coarsest, -1 padding
    expected_levels: Tensor  # B x h x w


_OF_ALLOCATION = ("s_prior", "product", "s_prior_cells", "product_cells", "levels", "expected_levels")


def names(scorer: Scorer) -> tuple[str, ...]:
    """Return the names of the graph's outputs: those of `Outputs`, as far as the scorer has them."""
    trained = scorer.networks.allocator is not None
    return tuple(name for name in Outputs._fields if trained or name not in _OF_ALLOCATION)


class _BatchedMemory(Memory):
    """The distances of all views in one product."""

    def distances(self, x_BChw: Tensor, valid_Bhw: Tensor, without_group: Tensor | None = None) -> Tensor:
        least = self.away(self.vectors(x_BChw).flatten(0, 1))
        return self.smoothed(least.view(valid_Bhw.shape), valid_Bhw)


class _BatchedAutoencoder(Autoencoder):
    """Quantises every cell, and drops those on padding afterwards."""

    def decode(self, codes: list[Tensor], allocation: Allocation, valid_BHW: Tensor) -> Output:
        merged = merge(codes, allocation.onehot).movedim(1, -1)
        vectors = merged.flatten(0, 2)
        indices = nearest(vectors, self.codebook.codes)[1]
        quantised = vectors + (self.codebook.codes[indices] - vectors)
        canvas = quantised.view(merged.shape).masked_fill(~valid_BHW[..., None], 0.0)
        return Output(self.decoder(canvas.movedim(-1, 1)), allocation, vectors, indices, vectors.new_zeros(()))


class _ChosenPrior(BudgetPrior):
    """The priors of a `Clustered` all asked, and the answer of each view's cluster taken."""

    def __init__(self, source: Clustered):
        first = source.members[0]
        levels = first.embed.in_features // 2
        super().__init__(first.grid, levels, first.embed.out_features)
        self.source = source

    def forward(
        self, logits_BNR: Tensor, masked_BN: Tensor, padding_BN: Tensor, asked_BA: Tensor | None = None
    ) -> Expected:
        logits_BRhw = logits_BNR.transpose(1, 2).reshape(len(logits_BNR), -1, *self.grid)
        chosen = self.source.assign(logits_BRhw, ~padding_BN.reshape(-1, *self.grid))
        share = F.one_hot(chosen, len(self.source.members)).to(logits_BNR)[:, :, None, None]
        every = [member(logits_BNR, masked_BN, padding_BN, asked_BA) for member in self.source.members]
        return Expected(*((torch.stack(part, 1) * share).sum(1) for part in zip(*every, strict=True)))


class Graph(nn.Module):
    """`forward(pixels_B3SS in [0, 1], valid_BSS booleans)` returns the tensors of `names`."""

    def __init__(self, scorer: Scorer, model: config.Model, threshold: float):
        super().__init__()
        found = scorer.networks
        memories = {
            name: _BatchedMemory(*(getattr(x, field.name) for field in fields(Memory))) if isinstance(x, Memory) else x
            for name, x in found.memories.items()
        }
        for memory in memories.values():  # constants of the graph, not computed in it
            if memory.projection is not None:
                _ = memory.projection.matrix
            if isinstance(memory, Memory):
                _ = memory.squares
            if isinstance(memory, PlaceMemory):
                _ = memory.means
        self.learned, allocator = nn.ModuleList([found.backbone]), None
        self.parts: tuple[str, ...] = MEMORY_PARTS
        if found.allocator is not None:
            autoencoder, prior = _BatchedAutoencoder(model, found.backbone.spec), _one_prior(found.allocator.prior)
            autoencoder.load_state_dict(found.allocator.autoencoder.state_dict())
            self.learned.extend([autoencoder, prior])  # registers them
            allocator, self.parts = Allocator(autoencoder, prior, found.allocator.measure), PARTS
        self.networks = replace(found, allocator=allocator, memories=memories)
        self.scorer, self.threshold = replace(scorer, networks=self.networks), threshold
        self.eval().requires_grad_(False)

    def forward(self, pixels_B3SS: Tensor, valid_BSS: Tensor) -> tuple[Tensor, ...]:
        scorer = self.scorer
        raw = measure(self.networks, self.networks.backbone(pixels_B3SS), valid_BSS)
        cells = {name: scorer.part_map(raw, scorer.for_image, name) for name in self.parts}
        parts = {name: self._image_part(name, cells[name], raw.cells) for name in self.parts}
        fuse: Any = scoring.FUSIONS[scorer.score.fusion]  # of numbers there, of tensors here
        score = fuse(parts.__getitem__)
        maps = scorer.part_map(raw, scorer.for_map, scoring.FUSION_MAP[scorer.score.fusion])
        found = {
            "image_score": score,
            "margin": score - self.threshold,
            "anomaly_map": scorer.enlarged(scorer.blurred(maps)),
            **parts,
            **{f"{name}_cells": values for name, values in cells.items()},
            "valid_cells": raw.cells,
        }
        if raw.ask is not None:
            found |= {"levels": raw.budget.levels, "expected_levels": raw.budget.expected}
        return tuple(found[name] for name in names(self.scorer))

    def _image_part(self, name: str, cells_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
        score = _top_mean(cells_BHW, valid_BHW, self.scorer.score.top)
        if (scale := self.scorer.scales.get(name)) is None:
            return score
        return (score - scale.mean) / scale.deviation


def _one_prior(prior: Prior) -> BudgetPrior:
    return _ChosenPrior(prior) if isinstance(prior, Clustered) else prior


def _top_mean(values_BHW: Tensor, valid_BHW: Tensor, share: float) -> Tensor:
    """Return `scoring.top_mean` of the valid cells of each view, B."""
    cells = values_BHW.masked_fill(~valid_BHW, -torch.inf).flatten(1).sort(dim=1, descending=True).values
    count = (share * valid_BHW.flatten(1).sum(1).double()).round().clamp_min(1)
    counted = torch.arange(cells.shape[1])[None] < count[:, None]
    return torch.where(counted, cells, torch.zeros_like(cells)).sum(1) / count.float()
