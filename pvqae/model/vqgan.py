"""The convolutional encoder of the pixel backbone (VQ-GAN style), whose last R stages form the hierarchy Z_1..Z_R."""

import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of at least four channels, so that it works for any width."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels)


class ResidualBlock(nn.Module):
    """norm → SiLU → 3x3, twice, with a skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(y)))
        return out


class Encoder(nn.Module):
    """Five stages of stride 2: strides 2, 4, 8, 16, 32. `forward(x_B3SS)` gives the last R, coarse to fine."""

    STAGES = 5

    def __init__(self, width: int, levels: int):
        super().__init__()
        widths = [width // 2, width // 2, width, width, width]
        self.levels = levels
        self.channels = widths[::-1][:levels]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        inputs = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 4, stride=2, padding=1), ResidualBlock(o))
            for i, o in zip(inputs, widths, strict=True)
        )

    def forward(self, x_B3SS: Tensor) -> list[Tensor]:
        x, outputs = self.stem(x_B3SS), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs[::-1][: self.levels]
