"""Decoders G: merged, quantised codes on the finest grid → what the backbone's target is."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.model.norm import NormSilu
from pvqae.model.vqgan import ResidualBlock


class FeatureDecoder(nn.Module):
    """3x3 convolution, two residual blocks, 1x1: B x D x H x W → B x T x H x W, the grid does not change."""

    def __init__(self, code_dim: int, width: int, outputs: int, levels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(code_dim, width, 3, padding=1), ResidualBlock(width), ResidualBlock(width), NormSilu(width)
        )
        self.output = nn.Conv2d(width, outputs, 1)

    def forward(self, z_BDHW: Tensor) -> Tensor:
        out: Tensor = self.output(self.body(z_BDHW))
        return out


class PixelDecoder(nn.Module):
    """Upsample from the finest grid to the image, halving the stride each time: B x D x H x W → B x 3 x S x S."""

    def __init__(self, code_dim: int, width: int, outputs: int, levels: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(code_dim, width, 3, padding=1), ResidualBlock(width))
        doublings = 5 - (levels - 1)  # the encoder's coarsest stride is 2^5, its finest 2^(5 - (R - 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), ResidualBlock(width)) for _ in range(doublings)
        )
        self.head = nn.Sequential(NormSilu(width))  # a sequence of one: its name in bundles
        self.output = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, z_BDHW: Tensor) -> Tensor:
        x = self.stem(z_BDHW)
        for block in self.blocks:
            x = block(F.interpolate(x, scale_factor=2.0))
        out: Tensor = self.output(self.head(x))
        return out.sigmoid()


# code width D, width, channels of the target, levels → decoder with a last layer `.output`
DECODERS: dict[str, Callable[[int, int, int, int], nn.Module]] = {"features": FeatureDecoder, "pixels": PixelDecoder}
