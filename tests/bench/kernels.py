"""The small operations of training and inference, compared with the versions that one writes first.

n patches; P side of a patch; B images; D code width; R levels; K codes; h w the coarsest grid, H W the finest.
"""

import tempfile
from pathlib import Path

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pvqae.core import config
from pvqae.features import richness
from pvqae.features.features import Store
from pvqae.model.autoencoder import _Router, as_onehot, merge, nearest
from tests.bench.rows import Row, Size, at_least, side_by_side


def entropy(patch_PP: NDArray[np.float32]) -> float:
    """One patch by the book: a transform, its detail coefficients, their entropy."""
    bands = pywt.wavedec2(patch_PP, "haar", level=3)[1:]
    energy = np.concatenate([band.ravel() for triple in bands for band in triple]) ** 2 + richness._NOISE_FLOOR
    share = energy / energy.sum()
    return float(-(share * np.log(share)).sum() / np.log(len(share)))


def dwt(size: Size) -> list[Row]:
    """DWT entropy of an epoch's images: a loop computes it patch by patch, training reads what it computed once."""
    images = torch.rand(size.of(2, 16), 3, 320, 320, generator=torch.Generator().manual_seed(0))
    patches = richness.patches(images)

    def loop() -> list[float]:
        return [entropy(patch) for patch in patches.numpy()]

    difference = float(np.abs(richness._dwt_entropy(patches).numpy() - np.array(loop())).max())
    if not difference < 1e-6:
        raise AssertionError(f"expected the same numbers to 1e-6, they differ by {difference}")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), 1.0)
        for index, one in enumerate(images):
            store.put(f"{index:064}", {"cost": richness.cost(one[None], "dwt_entropy")})
        kept, slow = side_by_side(lambda: [store.get(f"{i:064}") for i in range(len(images))], loop, size.of(1, 7))
    ours, theirs = side_by_side(lambda: richness._dwt_entropy(patches), loop, size.of(1, 7))
    what = f"DWT entropy of {len(images)} images, {len(patches)} patches"
    same = f"the same numbers to {difference:.0e}"
    return [
        Row(
            f"{what}: as training reads it",
            f"{kept * 1e3:.1f} ms",
            _loop(slow),
            slow / kept,
            *at_least(slow / kept, 50),
        ),
        Row(f"{what}: computed", f"{ours * 1e3:.1f} ms", _loop(theirs), theirs / ours, "", None, same),
    ]


def _loop(seconds: float) -> str:
    return f"per-patch `pywt` loop, {seconds * 1e3:.0f} ms"


def everywhere(router: _Router, levels: list[Tensor], valid_BHW: Tensor, codes_KD: Tensor) -> tuple[Tensor, Tensor]:
    """By the book: every level enlarged and quantised at full resolution, padding too, then one of them is chosen."""
    chosen_BHW = F.interpolate(as_onehot(router(levels).argmax(1), len(levels)), valid_BHW.shape[1:]).argmax(1)
    vectors, indices = [], []
    for x in levels:
        up = F.interpolate(x, valid_BHW.shape[1:]).movedim(1, -1).flatten(0, 2)
        index = torch.cdist(up, codes_KD).argmin(1)
        vectors.append(codes_KD[index])
        indices.append(index)
    which = chosen_BHW.flatten()[None]
    index = torch.stack(indices).gather(0, which)[0]
    return torch.stack(vectors)[which[0], torch.arange(len(index))][valid_BHW.flatten()], index[valid_BHW.flatten()]


def once(router: _Router, levels: list[Tensor], valid_BHW: Tensor, codes_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Ours: merged first, then only image cells are looked up."""
    merged = merge(levels, as_onehot(router(levels).argmax(1), len(levels)))
    index = nearest(merged.movedim(1, -1)[valid_BHW], codes_KD)[1]
    return codes_KD[index], index


@torch.no_grad()
def lookup(size: Size) -> list[Row]:
    """Router, merge and codebook look-up of a training batch."""
    model, draws = config.Model(), torch.Generator().manual_seed(0)
    grids = [10 * 2**r for r in range(model.levels)]
    levels = [torch.randn(size.of(2, 16), model.code_dim, g, g, generator=draws) for g in grids]
    codes = torch.randn(model.codes, model.code_dim, generator=draws)
    router = _Router(model.code_dim, model.levels, model.width).eval()
    valid = torch.ones(len(levels[0]), grids[-1], grids[-1], dtype=torch.bool)
    valid[:, : grids[-1] // 10] = False  # a letterboxed image
    same = float((once(router, levels, valid, codes)[1] == everywhere(router, levels, valid, codes)[1]).float().mean())
    if same < 0.999:  # ties of rounding aside
        raise AssertionError(f"expected the same codes, found {same:.4f} of them")
    ours, theirs = side_by_side(
        lambda: once(router, levels, valid, codes), lambda: everywhere(router, levels, valid, codes), size.of(1, 15)
    )
    what = f"router + merge + look-up, {len(levels[0])} images of {grids[-1]}x{grids[-1]} cells, K {model.codes}"
    book = f"every level at full resolution, no mask, {theirs * 1e3:.0f} ms"
    return [Row(what, f"{ours * 1e3:.1f} ms", book, theirs / ours, *at_least(theirs / ours, 2))]
