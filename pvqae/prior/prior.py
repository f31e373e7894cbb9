"""The budget prior: which allocation normal images have (METHOD section 4), by one transformer or one for each cluster.

B batch; N = h*w coarse cells; R levels; d width; k clusters; F numbers that describe an allocation. Its only input is
budgets: a defect can't explain itself by its looks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_REGIONS = 4  # an allocation is described by the mean logits of 4 x 4 regions


class Expected(NamedTuple):
    """What the prior expects at each cell, given the others."""

    logits: Tensor  # B x N x R, of the expected level
    mean: Tensor  # B x N x R, of the router's logits
    log_variance: Tensor  # B x N x R, within +-6


def level_frequencies(logits_BNR: Tensor, valid_BN: Tensor) -> Tensor:
    """Return log frequencies N x R of the chosen levels at each position, one view of each level added (Laplace)."""
    levels = logits_BNR.shape[-1]
    chosen = F.one_hot(logits_BNR.argmax(-1), levels) * valid_BN[..., None].float()
    return (chosen.sum(0) + 1).log() - (chosen.sum((0, 2)) + levels).log()[:, None]


class BudgetPrior(nn.Module):
    """One transformer block over the N resolution tokens, with learnt positions and a mask token.

    It begins as the per-position statistics of what it will learn from (`start`, ours), and adds what context tells:
    without that it stayed worse than the frequency table on parts that are always placed alike.
    """

    def __init__(self, grid: tuple[int, int], levels: int, width: int, heads: int = 4):
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(2 * levels, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], width))
        self.block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.2, activation="gelu", batch_first=True, norm_first=True
        )
        self.block.self_attn.dropout = 0.0  # a third of a step's time, and predicts no better with it
        head = nn.Linear(width, 3 * levels)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.output = nn.Sequential(nn.LayerNorm(width), head)
        self.base = nn.Parameter(torch.zeros(grid[0] * grid[1], 3 * levels))

    @torch.no_grad()
    def start(self, logits_BNR: Tensor, valid_BN: Tensor) -> None:
        """Set the base to the frequencies of levels, and to mean and variance of the logits, of each position."""
        weight = valid_BN[..., None].float()
        count = weight.sum(0).clamp_min(1)
        frequency = level_frequencies(logits_BNR, valid_BN)
        mean = (logits_BNR * weight).sum(0) / count
        variance = ((logits_BNR - mean).square() * weight).sum(0) / count
        self.base.copy_(torch.cat([frequency, mean, (variance + 1e-2).log()], dim=-1))

    def forward(
        self, logits_BNR: Tensor, masked_BN: Tensor, padding_BN: Tensor, asked_BA: Tensor | None = None
    ) -> Expected:
        """Predict every cell, or in evaluation the `asked` ones alone (indices; B x A x R each); `masked` cells are
        hidden from the input, `padding` cells take no part.
        """
        tokens = self.embed(torch.cat([logits_BNR.softmax(-1), logits_BNR / 5], dim=-1))
        hidden = (masked_BN | padding_BN)[..., None]
        tokens = torch.where(hidden, self.mask_token, tokens) + self.position
        if asked_BA is None:
            out = self.base + self.output(self.block(tokens, src_key_padding_mask=padding_BN))
        else:
            out = self.base[asked_BA] + self.output(self._block_at(tokens, padding_BN, asked_BA))
        logits, mean, log_variance = out.chunk(3, dim=-1)
        return Expected(logits, mean, log_variance.clamp(-6, 6))

    def _block_at(self, tokens_BNd: Tensor, padding_BN: Tensor, asked_BA: Tensor) -> Tensor:
        """Return the block's outputs at some cells, without dropout: only keys and values are needed of the others."""
        block, attention = self.block, self.block.self_attn
        index = asked_BA[..., None].expand(-1, -1, tokens_BNd.shape[-1])
        normed = block.norm1(tokens_BNd)
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)
            for x, weight, bias in zip((normed.gather(1, index), normed, normed), weights, biases, strict=True)
        )
        found = F.scaled_dot_product_attention(query, key, value, ~padding_BN[:, None, None])
        x = tokens_BNd.gather(1, index) + attention.out_proj(found.transpose(1, 2).flatten(2))
        out: Tensor = x + block.linear2(block.activation(block.linear1(block.norm2(x))))
        return out


def _complementary_masks(grid: tuple[int, int], spacing: int = 4) -> tuple[Tensor, Tensor]:
    """Return `asked` and `hidden`, each passes x N: every cell is asked in exactly one pass, in which its 3x3 is
    hidden.
    """
    rows, columns = torch.arange(grid[0])[:, None], torch.arange(grid[1])[None, :]
    phase = (rows % spacing) * spacing + columns % spacing
    every = [r * spacing + c for r in range(min(spacing, grid[0])) for c in range(min(spacing, grid[1]))]
    asked = torch.stack([phase == p for p in every])
    hidden = F.max_pool2d(asked[:, None].float(), 3, 1, 1)[:, 0] > 0
    return asked.flatten(1), hidden.flatten(1)


def _turns(grid: tuple[int, int], spacing: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return the passes of `_complementary_masks` as indices: the cells that each pass asks, P x A, filled up with
    their last; and for each cell its pass and its place among that pass's cells, N each.
    """
    asked: dict[int, list[int]] = {}
    for cell in range(grid[0] * grid[1]):
        row, column = divmod(cell, grid[1])
        asked.setdefault(row % spacing * spacing + column % spacing, []).append(cell)
    passes = [asked[phase] for phase in sorted(asked)]
    places = {cell: (which, place) for which, own in enumerate(passes) for place, cell in enumerate(own)}
    most = max(map(len, passes))
    which, place = zip(*(places[cell] for cell in range(len(places))), strict=True)
    cells = [own + own[-1:] * (most - len(own)) for own in passes]
    return torch.tensor(cells), torch.tensor(which), torch.tensor(place)


class Clustered(nn.Module):
    """k priors; a view is expected to be as those normals were whose allocations are nearest to its own."""

    centres: Tensor

    def __init__(self, centres_kF: Tensor, priors: list[BudgetPrior]):
        super().__init__()
        self.register_buffer("centres", centres_kF)
        self.members = priors
        self.priors = nn.ModuleList(priors)  # registers them

    def assign(self, logits_BRhw: Tensor, valid_Bhw: Tensor) -> Tensor:
        """Return the cluster of each view, B."""
        away = torch.cdist(
            self.describe(logits_BRhw, valid_Bhw), self.centres, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return away.argmin(1)

    @staticmethod
    def describe(logits_BRhw: Tensor, valid_Bhw: Tensor) -> Tensor:
        """Return mean router logits of each region's valid cells, B x F; zero where a region is all padding."""
        height, width = valid_Bhw.shape[-2:]
        regions = (min(_REGIONS, height), min(_REGIONS, width))
        valid = valid_Bhw[:, None].float()
        share = F.adaptive_avg_pool2d(valid, regions)
        total = F.adaptive_avg_pool2d(logits_BRhw.float() * valid, regions)
        return (total / share.clamp_min(1e-6)).flatten(1)


Prior = BudgetPrior | Clustered


@torch.no_grad()
def expect(prior: Prior, logits_BRhw: Tensor, valid_Bhw: Tensor) -> Expected:
    """Return the expectation of each cell while it and its neighbours are hidden; B x N x R each."""
    if isinstance(prior, BudgetPrior):
        return _expect_single(prior, logits_BRhw, valid_Bhw)
    chosen = prior.assign(logits_BRhw, valid_Bhw)
    batch, levels = logits_BRhw.shape[:2]
    empty = logits_BRhw.new_empty(batch, valid_Bhw[0].numel(), levels, dtype=torch.float32)
    out = Expected(empty, empty.clone(), empty.clone())
    for cluster in range(len(prior.centres)):
        mine = chosen == cluster
        if mine.any():
            found = _expect_single(prior.members[cluster], logits_BRhw[mine], valid_Bhw[mine])
            for part, values in zip(out, found, strict=True):
                part[mine] = values
    return out


@torch.no_grad()
def _expect_single(prior: BudgetPrior, logits_BRhw: Tensor, valid_Bhw: Tensor) -> Expected:
    """Return the expectation of each cell while it and its neighbours are hidden; all passes in one batch."""
    logits_BNR = logits_BRhw.flatten(2).transpose(1, 2).float()
    batch, device = logits_BNR.shape[0], logits_BNR.device  # len() would fix the batch of an exported graph
    _, hidden = _complementary_masks(prior.grid)
    cells, which, place = (x.to(device) for x in _turns(prior.grid))
    passes, padding = len(hidden), ~valid_Bhw.flatten(1)
    every = prior(
        logits_BNR.repeat_interleave(passes, 0),
        hidden.to(device).repeat(batch, 1),
        padding.repeat_interleave(passes, 0),
        cells.repeat(batch, 1),
    )
    rows = torch.arange(batch, device=device)[:, None] * passes + which
    return Expected(*(part[rows, place] for part in every))


def from_tensors(tensors: dict[str, Tensor], grid: tuple[int, int], levels: int, width: int) -> Prior:
    """Return the prior whose state these tensors are, in evaluation mode."""
    found: Prior = BudgetPrior(grid, levels, width)
    if (centres_kF := tensors.get("centres")) is not None:
        found = Clustered(centres_kF.clone(), [BudgetPrior(grid, levels, width) for _ in centres_kF])
    found.load_state_dict(tensors)
    found.eval().requires_grad_(False)
    return found
