"""The autoencoder: necks, router, codebook and decoder composed (METHOD section 1).

B batch; R levels, coarse to fine; D code width; h w the coarsest grid; H W the finest; T channels of the target.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core.config import Model
from pvqae.model import backbones
from pvqae.model.backbones import Features, Spec
from pvqae.model.codebook import Codebook
from pvqae.model.layers import DECODERS, norm

_LOGIT_SCALE = 1.5  # against Gumbel noise of deviation 1.3: a typical cell still tries other levels
_LOGIT_LIMIT = 5.0  # beyond it the Gumbel noise no longer changes a choice, and a level that lost can't come back


class Allocation(NamedTuple):
    """One resolution level per coarse cell."""

    logits: Tensor  # B x R x h x w, within +-5
    onehot: Tensor  # B x R x h x w; in training straight-through, so it carries the gradient of the soft choice

    @property
    def levels(self) -> Tensor:
        """B x h x w, 0 is the coarsest."""
        return self.onehot.argmax(dim=1)

    @property
    def soft(self) -> Tensor:
        """B x R x h x w, the probabilities without noise."""
        return self.logits.softmax(dim=1)


def as_onehot(levels_Bhw: Tensor, n_levels: int) -> Tensor:
    """Convert B x h x w integers to B x R x h x w floats."""
    return F.one_hot(levels_Bhw, n_levels).movedim(-1, 1).float()


class _Router(nn.Module):
    """Average-pool every level to the coarsest grid, concatenate, two linear layers per cell.

    Each level's logits are standardised over the cells seen in training, plus a learnt shift within +-1 (ours). Without
    that, all cells of a uniform texture change level together, and one level took 98-100 % of them on mtsd, grass and
    gravel: what the allocation can say is which cells differ from the others. The shift leaves the spend to the budget.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, code_dim: int, levels: int, width: int):
        super().__init__()
        self.norm = norm(code_dim * levels)
        self.hidden = nn.Conv2d(code_dim * levels, width, 1)
        self.output = nn.Conv2d(width, levels, 1)
        self.shift = nn.Parameter(torch.zeros(levels))
        self.register_buffer("mean", torch.zeros(levels))
        self.register_buffer("deviation", torch.ones(levels))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Map R maps B x D x h_r x w_r to logits B x R x h x w."""
        standard = (self._raw(levels) - self.mean[:, None, None]) / self.deviation[:, None, None]
        logits = _LOGIT_SCALE * (standard + self.shift.tanh()[:, None, None])
        return logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)

    @torch.no_grad()
    def observe(self, levels: list[Tensor], valid_Bhw: Tensor, momentum: float = 0.2) -> None:
        """Move the standardisation towards the valid cells of a training batch."""
        cells = self._raw(levels).movedim(1, -1)[valid_Bhw]
        if len(cells) < 2:  # one cell has no deviation: NaN would stay for good
            return
        self.mean.lerp_(cells.mean(0), momentum)
        self.deviation.lerp_(cells.std(0).clamp_min(1e-3), momentum)

    def _raw(self, levels: list[Tensor]) -> Tensor:
        grid = (levels[0].shape[-2], levels[0].shape[-1])
        pooled = torch.cat([F.adaptive_avg_pool2d(x, grid) for x in levels], dim=1)
        raw: Tensor = self.output(F.silu(self.hidden(self.norm(pooled))))
        return raw.float()


def merge(levels: list[Tensor], onehot_BRhw: Tensor) -> Tensor:
    """Return h = sum over r of b_r * upsample(Z_r), on the finest grid; so the gradient reaches every branch."""
    grid = levels[-1].shape[-2:]
    gates = F.interpolate(onehot_BRhw, grid)
    ups = [F.interpolate(x, grid) for x in levels]
    return sum((gates[:, r : r + 1] * x for r, x in enumerate(ups)), torch.zeros_like(ups[-1]))


class Output(NamedTuple):
    """One pass through the autoencoder."""

    reconstruction: Tensor  # B x T x H x W (standardised) features, or B x 3 x S x S pixels
    allocation: Allocation  # what was spent
    merged: Tensor  # n x D, the merged vectors of valid cells before quantisation
    indices: Tensor  # n codes; -1 before quantisation has begun
    commitment: Tensor  # scalar loss


class _Standardise(nn.Module):
    """Per-channel mean and deviation of training normals; identity until `fit`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    @torch.no_grad()
    def fit(self, x_BCHW: Tensor, valid_BHW: Tensor) -> None:
        """Fit statistics to valid cells. A channel that never varies keeps a deviation of 1."""
        vectors = x_BCHW.float().movedim(1, -1)[valid_BHW]
        self.mean.copy_(vectors.mean(0))
        spread = vectors.std(0)
        self.deviation.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW - self.mean[:, None, None]) / self.deviation[:, None, None]


class _Neck(nn.Module):
    """To D normalised channels per level; finer levels also see the coarser context (top-down)."""

    def __init__(self, channels: tuple[int, ...], width: int, code_dim: int):
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.mixes = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.outputs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, code_dim, 1), norm(code_dim)) for _ in channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        context, codes = None, []
        for x, enter, mix, leave in zip(levels, self.inputs, self.mixes, self.outputs, strict=True):
            own = enter(x)
            context = own if context is None else own + F.interpolate(context, own.shape[-2:])
            context = F.silu(mix(F.silu(context)))
            codes.append(leave(context))
        return codes


class Autoencoder(nn.Module):
    """Everything of the network but the backbone; it reads the backbone's `Features`."""

    def __init__(self, model: Model, spec: Spec):
        super().__init__()
        self.spec = spec
        self.scales = [_Standardise(c) for c in spec.channels]
        self.scale_levels = nn.ModuleList(self.scales)  # registers them
        self.scale_target = _Standardise(sum(spec.groups))
        self.neck = _Neck(spec.channels, model.width, model.code_dim)
        self.router = _Router(model.code_dim, model.levels, model.width)
        self.codebook = Codebook(model.codes, model.code_dim, model.commitment, model.ema_decay)
        self.decoder = DECODERS[spec.decoder](model.code_dim, model.width, sum(spec.groups), model.levels)

    def codes(self, features: Features) -> list[Tensor]:
        """Return R maps B x D x h_r x w_r of normalised vectors, before quantisation."""
        scaled = [scale(x) for scale, x in zip(self.scales, features.levels, strict=True)]
        codes: list[Tensor] = self.neck(scaled)
        return codes

    def allocate(self, codes: list[Tensor]) -> Allocation:
        """Return the deterministic allocation of inference: argmax, no noise."""
        logits = self.router(codes)
        onehot = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        return Allocation(logits, onehot)

    def decode(self, codes: list[Tensor], allocation: Allocation, valid_BHW: Tensor) -> Output:
        """Merge by the allocation, quantise the valid cells, decode."""
        merged = merge(codes, allocation.onehot)
        vectors = merged.movedim(1, -1)[valid_BHW]
        quantised = self.codebook(vectors)
        canvas = merged.movedim(1, -1).masked_fill(~valid_BHW[..., None], 0.0)
        canvas = canvas.masked_scatter(valid_BHW[..., None], quantised.vectors.to(canvas.dtype))
        reconstruction = self.decoder(canvas.movedim(-1, 1))
        return Output(reconstruction, allocation, vectors, quantised.indices, quantised.loss)

    def reconstruct(self, features: Features, valid_BHW: Tensor, onehot_BRhw: Tensor | None = None) -> Output:
        """Reconstruct with a given allocation, or with the router's own (paper, inference)."""
        codes = self.codes(features)
        own = self.allocate(codes)
        return self.decode(codes, own if onehot_BRhw is None else Allocation(own.logits, onehot_BRhw), valid_BHW)

    def standardised_target(self, features: Features) -> Tensor:
        """Return what the reconstruction is compared with: pixels as they are, features per channel standardised."""
        target: Tensor = features.target if self.spec.decoder == "pixels" else self.scale_target(features.target)
        return target

    @classmethod
    def from_tensors(cls, weights: dict[str, Tensor], model: Model, backbone: backbones.Backbone) -> "Autoencoder":
        """Return the autoencoder of a weights file's tensors, in evaluation mode; load a trained backbone, too."""
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        autoencoder = cls(model, backbone.spec)
        for prefix, module in (("autoencoder.", autoencoder), ("backbone.", backbone)):
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if own:
                module.load_state_dict(own)
        return autoencoder.eval().requires_grad_(False)
