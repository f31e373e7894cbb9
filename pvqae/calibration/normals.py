"""What is estimated from normal images in closed form: memory codes, whitenings and the statistics of measures.

n vectors or views; K codes; C channels of a level, h w its grid; T channels of the decoder's target.
"""

import torch
from torch import Tensor

from pvqae.core import config, seeding, tensors
from pvqae.inference.measures import Level
from pvqae.inference.readout import Normal
from pvqae.model.backbones import cells_of
from pvqae.model.codebook import cover

_CHUNK = 32  # views pooled at once
_ROUNDING = 2**-11  # relative, of half precision, in which networks and features are kept
_PSEUDO = 8  # views of the global statistics that each location starts with: few own views say little


def residual_whitening(residuals_nT: Tensor, ridge: float = 0.01) -> Tensor:
    """Return the T x T matrix that makes normal residuals white; `ridge` is relative to their mean variance."""
    centred = residuals_nT - residuals_nT.mean(0)
    covariance = centred.T @ centred / len(centred)
    covariance += ridge * covariance.diagonal().mean() * torch.eye(len(covariance))
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(covariance.double()))
    return factor.float()


def _whitening(vectors_nC: Tensor, ridge: float) -> Tensor:
    """Return the C x C symmetric whitening of the standardised vectors.

    `ridge`, relative to their mean variance, is added to every direction: from few images the thin directions of the
    covariance are guesses.
    """
    spread = vectors_nC.std(0)
    deviation = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    standard = ((vectors_nC - vectors_nC.mean(0)) / deviation).double()
    values, directions = torch.linalg.eigh(standard.T @ standard / len(standard))
    values = values.clamp_min(0)
    scale = (values + ridge * values.mean().clamp_min(1e-6)).rsqrt()
    white: Tensor = (directions * scale) @ directions.T / deviation[:, None]
    return white.float()


def fit_level(
    x_nChw: Tensor, valid_nSS: Tensor, group_n: Tensor, settings: config.Memory, seed: int, name: str
) -> Level:
    """Cover the valid cells of one level of n views with codes, as `settings` say.

    At most `settings.patches` cells are drawn first. `group_n`: the group of each view.
    """
    valid = cells_of(valid_nSS, x_nChw.shape[-2:])
    cells, views = valid.flatten().nonzero()[:, 0], valid[0].numel()
    generator = seeding.generator(seed, "memory", name)
    drawn = cells[torch.randperm(len(cells), generator=generator)[: settings.patches].sort().values]
    vectors = _at(x_nChw, valid, drawn)
    mean, white = vectors.mean(0), _whitening(vectors, settings.ridge).half().float()
    standard = (vectors - mean) @ white
    chosen = cover(standard, settings.codes)
    # Rounded now, as on disk: what is calibrated is what is shipped.
    codes, step = _rounded(standard[chosen])
    return Level(mean, white, codes, step, group_n[drawn[chosen] // views])


def _rounded(codes_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes as multiples of a step per channel that a signed byte can hold, and the steps."""
    step = tensors.steps(codes_KC, dim=0)
    return (codes_KC / step).round() * step, step


def _at(x_nChw: Tensor, valid_nhw: Tensor, drawn: Tensor) -> Tensor:
    """Return the pooled vectors of the drawn cells, a few views at a time: all at once would fill the memory."""
    views, parts = valid_nhw[0].numel(), []
    for start in range(0, len(x_nChw), _CHUNK):
        part = Level.pooled(x_nChw[start : start + _CHUNK].float())
        inside = drawn[(drawn >= start * views) & (drawn < (start + _CHUNK) * views)] - start * views
        parts.append(part.movedim(1, -1).flatten(0, 2)[inside])
    return torch.cat(parts)


def fit_statistics(values_nhw: Tensor, valid_nhw: Tensor, grain: float = 0.0) -> Normal:
    """Return statistics over valid cells.

    Those of a location are drawn towards the global ones, as if it had seen `_PSEUDO` views of them: few views make a
    local deviation small by chance, and the score huge. No deviation is below `grain`, which is how far a value moves
    when the same part is photographed again (see `fitting.Fitted`).
    """
    every = values_nhw[valid_nhw]
    mean, deviation = every.mean(), every.std(correction=min(1, len(every) - 1))
    deviation = deviation.clamp_min(floor(float(mean), grain))
    weight = valid_nhw.to(values_nhw)
    count = weight.sum(0) + _PSEUDO
    kept = torch.where(valid_nhw, values_nhw, mean)
    local = (kept * weight).sum(0).add(_PSEUDO * mean) / count
    squares = ((kept - local).square() * weight).sum(0)
    return Normal(local, ((squares + _PSEUDO * deviation.square()) / count).sqrt(), mean, deviation)


def floor(mean: float, grain: float) -> float:
    """Return the least deviation of values around `mean` that means anything: below it is rounding or camera noise."""
    return max(grain, _ROUNDING * max(1.0, abs(mean)))
