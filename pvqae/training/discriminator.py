"""The patch discriminator of the pixel backbone: one logit per patch, hinge losses (METHOD section 2)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.model.layers import norm

WEIGHT_CAP = 0.75  # an uncapped adaptive weight let the discriminator ruin reconstructions


class Discriminator(nn.Module):
    """B x 3 x S x S → logits B x 1 x S/8 x S/8."""

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


def hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's loss; 2 when it can't tell."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def adversarial(fake_logits: Tensor) -> Tensor:
    """The decoder's loss: be taken for real."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """|grad L_rec| / (|grad L_adv| + 1e-4) at the decoder's last layer, capped (paper; the cap is ours)."""
    (rec,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (adv,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    weight: Tensor = (rec.norm() / (adv.norm() + 1e-4)).clamp(max=WEIGHT_CAP).detach()
    return weight
