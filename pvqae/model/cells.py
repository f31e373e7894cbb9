"""Cells of a grid over a view: which of them show the image, and what padding takes from them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def on_grid(valid_BSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Cells of which at least half are image, or of a very thin image those it covers best: B x S x S → B x grid."""
    share = F.adaptive_avg_pool2d(valid_BSS[:, None].float(), (grid[0], grid[1]))[:, 0]
    return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5)


def repeat_border(map_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Padding takes the value of the nearest image cell, as its pixels do, so that no smoothing carries anything else
    into the image. The valid cells of a view are a rectangle."""
    for dim in (1, 2):
        inside = valid_BHW.any(3 - dim).int()
        length = inside.shape[1]
        first, last = inside.argmax(1, keepdim=True), length - 1 - inside.flip(1).argmax(1, keepdim=True)
        index = torch.arange(length, device=map_BHW.device).expand_as(inside).clamp(first, last)
        map_BHW = map_BHW.gather(dim, index.unsqueeze(3 - dim).expand_as(map_BHW))
    return map_BHW


def cells_of(valid_nSS: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`on_grid` of many views, 256 at a time: all at once are floats of a quarter megabyte each."""
    return torch.cat([on_grid(some, grid) for some in torch.split(valid_nSS, 256)])
