"""The router: how many codes each coarse cell may spend (METHOD section 1).

B batch; R levels, coarse to fine; h w the coarsest grid.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.model.vqgan import norm

LOGIT_LIMIT = 5.0  # beyond it the Gumbel noise no longer changes a choice, and a level that lost can't come back


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
    """B x h x w integers → B x R x h x w floats."""
    return F.one_hot(levels_Bhw, n_levels).movedim(-1, 1).float()


def random_onehot(shape_BRhw: torch.Size, generator: torch.Generator) -> Tensor:
    """A level drawn evenly for every cell."""
    batch, levels, *grid = shape_BRhw
    return as_onehot(torch.randint(levels, (batch, *grid), generator=generator), levels)


def gumbel_onehot(logits_BRhw: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Hard straight-through Gumbel-softmax: one-hot forward, the soft choice's gradient backward."""
    uniform = torch.rand(logits_BRhw.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(logits_BRhw.device)
    soft = ((logits_BRhw - torch.log(-torch.log(uniform))) / temperature).softmax(dim=1)
    hard = as_onehot(soft.argmax(dim=1), logits_BRhw.shape[1])
    return hard + soft - soft.detach()


class Router(nn.Module):
    """Average-pool every level to the coarsest grid, concatenate, two linear layers per cell."""

    def __init__(self, code_dim: int, levels: int, width: int):
        super().__init__()
        self.norm = norm(code_dim * levels)
        self.hidden = nn.Conv2d(code_dim * levels, width, 1)
        self.output = nn.Conv2d(width, levels, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """R maps B x D x h_r x w_r → logits B x R x h x w."""
        grid = (levels[0].shape[-2], levels[0].shape[-1])
        pooled = torch.cat([F.adaptive_avg_pool2d(x, grid) for x in levels], dim=1)
        logits: Tensor = self.output(F.silu(self.hidden(self.norm(pooled))))
        return logits.float().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def merge(levels: list[Tensor], onehot_BRhw: Tensor) -> Tensor:
    """h = sum over r of b_r * upsample(Z_r), on the finest grid; the sum lets the gradient reach every branch."""
    grid = levels[-1].shape[-2:]
    gates = F.interpolate(onehot_BRhw, grid)
    ups = [F.interpolate(x, grid) for x in levels]
    return sum((gates[:, r : r + 1] * x for r, x in enumerate(ups)), torch.zeros_like(ups[-1]))
