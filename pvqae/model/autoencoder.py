"""The autoencoder: necks, router, codebook and decoder composed (METHOD section 1).

The codebook Q: K codes of width D, nearest by L2, straight-through, moved by EMA (METHOD section 2). Distances are
taken in float32: bf16 confuses near neighbours.

B batch; R levels, coarse to fine; D code width; h w the coarsest grid; H W the finest; T channels of the target; n
vectors; K codes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core.config import Model
from pvqae.model import backbones
from pvqae.model.backbones import Features, Spec
from pvqae.model.layers import DECODERS, norm

_LOGIT_SCALE = 1.5  # against Gumbel noise of deviation 1.3: a typical cell still tries other levels
_LOGIT_LIMIT = 5.0  # beyond it the Gumbel noise no longer changes a choice, and a level that lost can't come back
_GROUP = 32  # of 2048 values: 64 lows, then 32 values of one group
_AHEAD = 256  # rows among which the next centres are looked for, at least; of 2048 centres 64 and 1024 take longer
_ROWS = 2048  # rows compared with the new centres at once: their distances stay in the processor's cache


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


class _Quantised(NamedTuple):
    """The three values of every quantiser: what goes on, which codes, what it costs."""

    vectors: Tensor  # n x D, straight-through
    indices: Tensor  # n
    loss: Tensor  # commitment, on the encoder's side


def nearest(x_nD: Tensor, codes_KD: Tensor, squares_K: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the squared L2 distance to, and index of, the nearest code of each vector (n, n). |x|^2 is the same for
    all codes, so it is added after the minimum: one pass over the n x K products less. `squares_K`: those of the codes,
    if
    known.
    """
    kind = x_nD.device.type
    if torch.is_autocast_enabled(kind):  # it would take the products in bf16 all the same
        with torch.autocast(kind, enabled=False):
            return nearest(x_nD, codes_KD, squares_K)
    x, codes = x_nD.float(), codes_KD.float()
    squares = codes.square().sum(1) if squares_K is None else squares_K
    least, indices = _least(torch.addmm(squares, x, codes.T, alpha=-2))
    return (least + x.square().sum(1)).clamp_min(0), indices


def _least(products_nK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least of each row, and where it is: on a processor NumPy finds the place ten times faster than
    PyTorch.
    """
    if torch.compiler.is_compiling():
        return _least_by_groups(products_nK)
    if products_nK.device.type != "cpu":
        least, indices = products_nK.min(1)
        return least, indices
    indices = torch.from_numpy(products_nK.detach().numpy().argmin(1))
    return products_nK.gather(1, indices[:, None])[:, 0], indices


def _least_by_groups(products_nK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same in two steps, the group and the place in it: runtimes of exported graphs are fast to find a low
    value and slow to find its place, which took OpenVINO half of a score's time.
    """
    missing = -products_nK.shape[1] % _GROUP
    groups_nGM = F.pad(products_nK, (0, missing), value=torch.inf).view(products_nK.shape[0], -1, _GROUP)
    group = groups_nGM.amin(2).argmin(1)
    least, place = groups_nGM.gather(1, group[:, None, None].expand(-1, 1, _GROUP))[:, 0].min(1)
    return least, group * _GROUP + place


def cover(x_nD: Tensor, count: int, start: int = 0) -> Tensor:
    """Return indices of `count` rows that cover all rows: greedy k-centre, each next the farthest from those chosen.

    Density-based choices (k-means, random) leave rare normal patches without a code, and those then look like
    defects. Fewer rows than `count` gives every row. Deterministic. Centres are taken as many at a time as are certain
    to be the greedy ones: one matrix product for all of them reads the rows once, not once per centre.
    """
    x, count = x_nD.float(), min(count, len(x_nD))
    norms, nearest = x.square().sum(1), torch.full((len(x),), torch.inf, device=x.device)
    chosen = centres = torch.tensor([start], device=x.device)[:count]
    while len(chosen) < count:
        # |x - c|^2 without |x|^2, which is the same for all centres
        nearer = [torch.addmm(norms[centres], part, x[centres].T, alpha=-2).amin(1) for part in torch.split(x, _ROWS)]
        nearest = torch.minimum(nearest, torch.cat(nearer) + norms)
        nearest[centres] = -torch.inf
        centres = _farthest(x, norms, nearest, max(_AHEAD, count // 32))[: count - len(chosen)]
        chosen = torch.cat([chosen, centres])
    return chosen.cpu()


def _farthest(x_nD: Tensor, norms_n: Tensor, nearest_n: Tensor, ahead: int) -> Tensor:
    """Return the next greedy centres, in order: at least one, and those farther than any row that is not
    compared.

    `nearest_n`: squared distance of each row to its nearest centre. Only the farthest, `ahead` rows, are compared with
    each other; the rest are at most as far as the last of these, and a new centre can only bring them nearer.
    """
    values, rows = nearest_n.topk(min(ahead + 1, len(nearest_n)))
    rows, limit = rows[:-1].sort().values, float(values[-1])
    vectors, left = x_nD[rows], nearest_n[rows].cpu()
    between = torch.addmm(norms_n[rows], vectors, vectors.T, alpha=-2).add(norms_n[rows, None]).cpu()
    found: list[int] = []
    while float(left.max()) > limit:
        found.append(int(left.argmax()))
        left = torch.minimum(left, between[found[-1]])
        left[found[-1]] = -torch.inf
    return rows[found] if found else nearest_n.argmax()[None]


class Codebook(nn.Module):
    """Codes started by coverage, then moved by an exponential moving average; dead codes are revived.

    Until `start` is called it passes vectors through unquantised.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, count: int, dim: int, commitment: float, decay: float):
        super().__init__()
        self.commitment, self.decay = commitment, decay
        self.register_buffer("codes", torch.zeros(count, dim))
        self.register_buffer("counts", torch.ones(count))
        self.register_buffer("sums", torch.zeros(count, dim))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start(self, x_nD: Tensor) -> None:
        """Begin with codes that cover `x`; counts start at 1, so that the first average is not a division by little."""
        chosen = cover(x_nD, len(self.codes)).to(x_nD.device)
        repeats = -(-len(self.codes) // len(chosen))
        self.codes.copy_(x_nD.float()[chosen].repeat(repeats, 1)[: len(self.codes)])
        self.counts.fill_(1)
        self.sums.copy_(self.codes)
        self.started.fill_(True)

    def forward(self, x_nD: Tensor) -> _Quantised:
        if not self.started:
            nowhere = torch.full((len(x_nD),), -1, device=x_nD.device)
            return _Quantised(x_nD, nowhere, x_nD.new_zeros(()))
        indices = nearest(x_nD.detach(), self.codes)[1]
        chosen = self.codes[indices]
        loss = self.commitment * F.mse_loss(x_nD.float(), chosen)
        return _Quantised(x_nD + (chosen - x_nD).detach(), indices, loss)

    @torch.no_grad()
    def update(self, x_nD: Tensor, indices_n: Tensor) -> None:
        """Take one EMA step towards the vectors that chose each code; codes that nothing uses move to the worst
        covered.
        """
        x = x_nD.float()
        counts = torch.zeros_like(self.counts).index_add_(0, indices_n, torch.ones_like(x[:, 0]))
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices_n, x), 1 - self.decay)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])
        self._revive(x, indices_n)

    def _revive(self, x: Tensor, indices: Tensor) -> None:
        dead = (self.counts < 0.03).nonzero()[:, 0][: len(x)]
        worst = (x - self.codes[indices]).square().sum(1).topk(len(dead)).indices
        self.codes[dead], self.sums[dead], self.counts[dead] = x[worst], x[worst], 1.0


def usage(indices: Tensor, count: int) -> tuple[float, float]:
    """Return the share of codes in use, and perplexity (1..K), of a batch of indices."""
    shares = torch.bincount(indices.flatten(), minlength=count).float()
    shares /= shares.sum().clamp_min(1)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return float((shares > 0).float().mean()), float(entropy.exp())


class Output(NamedTuple):
    """One pass through the autoencoder."""

    reconstruction: Tensor  # B x T x H x W (standardised) features, or B x 3 x S x S pixels
    allocation: Allocation  # what was spent
    merged: Tensor  # n x D, the merged vectors of valid cells before quantisation
    indices: Tensor  # n codes; -1 before quantisation has begun
    commitment: Tensor  # scalar loss


class Moments:
    """Mean and deviation of each channel, taken batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros(1, dtype=torch.float64)

    def add(self, x_BCHW: Tensor, valid_BHW: Tensor) -> None:
        """Add the cells that are `valid`."""
        vectors = x_BCHW.movedim(1, -1)[valid_BHW].double().cpu()
        self.count += len(vectors)
        self.total, self.squares = self.total + vectors.sum(0), self.squares + vectors.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        centred = self.squares - self.count * self.mean.square()
        return (centred.clamp_min(0) / max(1, self.count - 1)).sqrt()


class _Standardise(nn.Module):
    """Per-channel mean and deviation of training normals; identity until `fit`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    @torch.no_grad()
    def fit(self, seen: Moments) -> None:
        """Take the statistics of what was seen. A channel that never varies keeps a deviation of 1."""
        spread = seen.deviation
        self.mean.copy_(seen.mean)
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

    @staticmethod
    def merged(codes: list[Tensor], onehot_BRhw: Tensor, valid_BHW: Tensor) -> Tensor:
        """Return what would be quantised, n x D of the valid cells: all that a decoder is not needed for."""
        return merge(codes, onehot_BRhw).movedim(1, -1)[valid_BHW]

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
