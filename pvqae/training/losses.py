"""The losses of training: reconstruction, budget with its weight over time, perceptual, adversarial (METHOD section 2).

B batch; R levels; T channels of the target; H W its grid; h w the coarsest grid; S side of an image.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pvqae.model import efficientnet
from pvqae.model.layers import norm

_WEIGHT_CAP = 0.75  # an uncapped adaptive weight let the discriminator ruin reconstructions


def _feature_loss(
    reconstruction_BTHW: Tensor, target_BTHW: Tensor, valid_BHW: Tensor, groups: tuple[int, ...]
) -> Tensor:
    """Return mean squared error per tap over valid cells, then the mean of the taps: 24 fine channels count as much as
    192 coarse ones, otherwise nothing is gained by spending fine codes.
    """
    weights = [torch.full((size,), 1 / (size * len(groups)), device=target_BTHW.device) for size in groups]
    error: Tensor = _WeightedSquares.apply(reconstruction_BTHW, target_BTHW, valid_BHW, torch.cat(weights))  # type: ignore[no-untyped-call]
    return error


class _WeightedSquares(torch.autograd.Function):
    """Squared differences summed with a weight for each channel, mean over valid cells. Its gradient is known with it,
    so one pass gives both, an image at a time: that stays in a processor's cache, and takes a seventh of the time.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHW: Tensor, y_BTHW: Tensor, valid_BHW: Tensor, weights_T: Tensor) -> Tensor:
        gradient, total = torch.empty_like(x_BTHW), weights_T.new_zeros(())
        share_BHW = valid_BHW / valid_BHW.sum()
        for x, y, share, out in zip(x_BTHW, y_BTHW, share_BHW, gradient, strict=True):
            difference = x.float() - y
            weighted = difference * weights_T[:, None, None] * share
            total += (difference * weighted).sum()
            out.copy_(weighted.mul_(2))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * dloss, None, None, None


def _feature_errors(reconstruction_BTHW: Tensor, target_BTHW: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Return the loss of each cell, B x H x W: what `_feature_loss` is the mean of."""
    squares = (reconstruction_BTHW.float() - target_BTHW).square()
    return torch.stack([part.mean(1) for part in torch.split(squares, list(groups), dim=1)]).mean(0)


def _similarity(x_BCHW: Tensor, y_BCHW: Tensor, window: int = 7) -> Tensor:
    """Return the SSIM of each pixel's window, averaged over channels, B x H x W within [-1, 1]; values in [0, 1]."""

    def local(z: Tensor) -> Tensor:
        # Columns, then rows: a mean over a window inside the image is the mean of the means. Three channels-last
        # channels would be averaged at a third of the speed.
        for size in ((window, 1), (1, window)):
            padding = (size[0] // 2, size[1] // 2)
            z = F.avg_pool2d(z.contiguous(), size, 1, padding, count_include_pad=False)
        return z

    mean_x, mean_y = local(x_BCHW), local(y_BCHW)
    var_x, var_y = local(x_BCHW.square()) - mean_x.square(), local(y_BCHW.square()) - mean_y.square()
    cov = local(x_BCHW * y_BCHW) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    ssim = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    )
    return ssim.mean(1)


def _pixel_loss(reconstruction_B3SS: Tensor, target_B3SS: Tensor, valid_BSS: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Return L1 + (1 - SSIM) / 2: L2 alone drowns small defects. Windows of SSIM reach into padding: that counts as
    right.
    """
    reconstruction = torch.where(valid_BSS[:, None], reconstruction_B3SS.float(), target_B3SS.float())
    return _pixel_errors(reconstruction, target_B3SS, groups)[valid_BSS].mean()


def _pixel_errors(reconstruction_B3SS: Tensor, target_B3SS: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Return the loss of each pixel, B x S x S."""
    x, y = reconstruction_B3SS.float(), target_B3SS.float()
    return (x - y).abs().mean(1) + 0.5 * (1 - _similarity(x, y))


# keyed as `pvqae.model.layers.DECODERS`: the mean over valid cells, and the value of each cell
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]] = {
    "features": _feature_loss,
    "pixels": _pixel_loss,
}
ERRORS: dict[str, Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]] = {
    "features": _feature_errors,
    "pixels": _pixel_errors,
}


def costs(levels: int) -> Tensor:
    """Return c_r = 4^(r - R): codes spent per cell, relative to the finest level; coarse to fine, e.g. 1/16, 1/4, 1."""
    return torch.tensor([4.0 ** (r - levels + 1) for r in range(levels)])


def budget_loss(onehot_BRhw: Tensor, entropy_Bhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Return (1/N) sum_i H_i sum_r b_ir c_r over valid cells: entropy within [0, 1], high entropy means low richness
    and makes fine codes dear (paper).
    """
    cost_Bhw = torch.einsum("brhw,r->bhw", onehot_BRhw, costs(onehot_BRhw.shape[1]).to(onehot_BRhw))
    return (entropy_Bhw * cost_Bhw)[valid_Bhw].mean()


def _linear(progress: float, spent: float, state: float) -> float:
    """Rise from 0 to 1 over training; the paper's choice."""
    return progress


def _constant(progress: float, spent: float, state: float) -> float:
    return 1.0


def _cosine(progress: float, spent: float, state: float) -> float:
    """Rise from 0 to 1, slow at both ends."""
    return 0.5 - 0.5 * math.cos(math.pi * progress)


def _adaptive(progress: float, spent: float, state: float, target: float = 0.4, rate: float = 0.05) -> float:
    """Ascend in the dual: dearer while more is spent than `target`, cheaper while less."""
    return min(1.0, max(0.0, state + rate * (spent - target)))


# share of the ramp done (0..1), mean spend of the last step, last value → value (0..1), a multiple of lambda_max
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "constant": _constant,
    "cosine": _cosine,
    "adaptive": _adaptive,
}


# Kappa is balanced for the paper's best maximum, whatever lambda_max is: balanced for lambda_max itself, the two would
# cancel and the maximum would change nothing.
PAPER_LAMBDA = 1.25


def automatic_kappa(gain_n: Tensor, cost_n: Tensor, lambda_max: float, levels: int) -> float:
    """Return the scale at which half of the cells are worth fine codes at the full price.

    `gain_n`: what each cell's reconstruction error falls by from all-coarse to all-fine codes; `cost_n`: its richness
    cost in [0, 1]. The gain grows while the decoder learns and differs by dataset a hundredfold, so any fixed scale
    ends all-coarse on one dataset and all-fine on another.
    """
    span = float(costs(levels)[-1] - costs(levels)[0])
    worth = gain_n / (cost_n.clamp_min(0.05) * max(lambda_max * span, 1e-6))
    return max(1e-6, float(worth.median()))


class Perceptual(nn.Module):
    """The distance of two images in a frozen network: B x 3 x S x S, twice → a scalar within [0, 4].

    Squared distances of unit vectors, mean over cells and then over four resolutions: LPIPS (arXiv 1801.03924) without
    the weights that it learnt from people's answers. The network is the packaged EfficientNet-Lite0.
    """

    _NAME = "efficientnet_lite0"
    _STAGES = (0, 1, 2, 4)  # strides 2, 4, 8, 16

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet.load(efficientnet.weights(self._NAME), self._NAME).eval().requires_grad_(False)
        ends = efficientnet.stages(self._NAME)
        self.taps = tuple(ends[stage][0] for stage in self._STAGES)

    def forward(self, reconstruction_B3SS: Tensor, target_B3SS: Tensor, valid_BSS: Tensor) -> Tensor:
        """Return the distance; padding counts as right."""
        x = torch.where(valid_BSS[:, None], reconstruction_B3SS.float(), target_B3SS.float())
        with torch.no_grad():
            wanted = self.network(target_B3SS.float(), self.taps)
        pairs = zip(self.network(x, self.taps), wanted, strict=True)
        distances = [
            (F.normalize(own, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean() for own, other in pairs
        ]
        return torch.stack(distances).mean()


class Discriminator(nn.Module):
    """The adversarial critic and its losses: B x 3 x S x S → logits B x 1 x S/8 x S/8."""

    def __init__(self, width: int):
        super().__init__()
        widths = [3, width // 2, width, width]
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), norm(o), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x_B3SS: Tensor) -> Tensor:
        logits: Tensor = self.body(x_B3SS)
        return logits

    @staticmethod
    def hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the discriminator's loss; 2 when it can't tell."""
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()

    @staticmethod
    def adversarial(fake_logits: Tensor) -> Tensor:
        """Return the decoder's loss: be taken for real."""
        return -fake_logits.mean()

    @staticmethod
    def adaptive_weight(reconstruction: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
        """Weigh the adversarial loss: |grad L_rec| / (|grad L_adv| + 1e-4) at the decoder's last
        layer, capped (paper; the cap is ours).
        """
        (rec,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
        (adv,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
        weight: Tensor = (rec.norm() / (adv.norm() + 1e-4)).clamp(max=_WEIGHT_CAP).detach()
        return weight
