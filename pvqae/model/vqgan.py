"""The convolutional encoder of the pixel backbone (VQ-GAN style), whose last R stages form the hierarchy Z_1..Z_R."""

from torch import Tensor, nn

from pvqae.model.norm import NormSilu


class ResidualBlock(nn.Module):
    """norm → SiLU → 3x3, twice, with a skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = NormSilu(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = NormSilu(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.norm2(self.conv1(self.norm1(x))))
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
