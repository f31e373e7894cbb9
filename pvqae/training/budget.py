"""The budget loss and its weight over time (METHOD section 2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def costs(levels: int) -> Tensor:
    """c_r = 4^(r - R): codes spent per cell, relative to the finest level; coarse to fine, e.g. 1/16, 1/4, 1."""
    return torch.tensor([4.0 ** (r - levels + 1) for r in range(levels)])


def spend(onehot_BRhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Mean cost per valid cell, within [4^(1-R), 1]."""
    cost_Bhw = torch.einsum("brhw,r->bhw", onehot_BRhw, costs(onehot_BRhw.shape[1]).to(onehot_BRhw))
    return cost_Bhw[valid_Bhw].mean()


def budget_loss(onehot_BRhw: Tensor, entropy_Bhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """(1/N) sum_i H_i sum_r b_ir c_r over valid cells: entropy within [0, 1], high entropy means low richness and
    makes fine codes dear (paper)."""
    cost_Bhw = torch.einsum("brhw,r->bhw", onehot_BRhw, costs(onehot_BRhw.shape[1]).to(onehot_BRhw))
    return (entropy_Bhw * cost_Bhw)[valid_Bhw].mean()


def linear(progress: float, spent: float, state: float) -> float:
    """0 → 1 over training; the paper's choice."""
    return progress


def constant(progress: float, spent: float, state: float) -> float:
    return 1.0


def cosine(progress: float, spent: float, state: float) -> float:
    """0 → 1, slow at both ends."""
    return 0.5 - 0.5 * math.cos(math.pi * progress)


def adaptive(progress: float, spent: float, state: float, target: float = 0.4, rate: float = 0.05) -> float:
    """Dual ascent: dearer while more is spent than `target`, cheaper while less."""
    return min(1.0, max(0.0, state + rate * (spent - target)))


# share of the ramp done (0..1), mean spend of the last step, last value → value (0..1), a multiple of lambda_max
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "linear": linear,
    "constant": constant,
    "cosine": cosine,
    "adaptive": adaptive,
}


# Kappa is balanced for the paper's best maximum, whatever lambda_max is: balanced for lambda_max itself, the two would
# cancel and the maximum would change nothing.
PAPER_LAMBDA = 1.25


def automatic_kappa(gain_n: Tensor, cost_n: Tensor, lambda_max: float, levels: int) -> float:
    """The scale at which half of the cells are worth fine codes at the full price.

    `gain_n`: what each cell's reconstruction error falls by from all-coarse to all-fine codes; `cost_n`: its richness
    cost in [0, 1]. The gain grows while the decoder learns and differs by dataset a hundredfold, so any fixed scale
    ends all-coarse on one dataset and all-fine on another.
    """
    span = float(costs(levels)[-1] - costs(levels)[0])
    worth = gain_n / (cost_n.clamp_min(0.05) * max(lambda_max * span, 1e-6))
    return max(1e-6, float(worth.median()))
