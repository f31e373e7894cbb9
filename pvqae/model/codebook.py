"""The codebook Q: K codes of width D, nearest by L2, straight-through, moved by EMA (METHOD section 2).

n vectors; K codes; D width. Distances are taken in float32: bf16 confuses near neighbours.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


_GROUP = 32  # of 2048 values: 64 lows, then 32 values of one group


def _least_by_groups(products_nK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same in two steps, the group and the place in it: runtimes of exported graphs are fast to find a low
    value and slow to find its place, which took OpenVINO half of a score's time.
    """
    missing = -products_nK.shape[1] % _GROUP
    groups_nGM = F.pad(products_nK, (0, missing), value=torch.inf).view(products_nK.shape[0], -1, _GROUP)
    group = groups_nGM.amin(2).argmin(1)
    least, place = groups_nGM.gather(1, group[:, None, None].expand(-1, 1, _GROUP))[:, 0].min(1)
    return least, group * _GROUP + place


_AHEAD = 256  # rows among which the next centres are looked for, at least; of 2048 centres 64 and 1024 take longer
_ROWS = 2048  # rows compared with the new centres at once: their distances stay in the processor's cache


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
