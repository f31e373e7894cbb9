"""Does the allocation matter? Three tests on one trained network (METHOD sections 2 and 5).

1. On normals, cells that gain more from fine codes get finer levels (`Use`: Spearman, and every level in real use).
2. Shuffling the expected budget over the cells of an image, with the same shares, makes normals reconstruct worse.
3. Reconstructing with the expected budget finds defects better than with one constant level or the actual allocation
   (`BUDGETS`: the same scoring path with another budget in the prior's place).

B views; R levels, coarse to fine; h w the coarsest grid; N = h*w; n valid cells of all views.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from pvqae.core import seeding
from pvqae.features.examples import Examples
from pvqae.inference.measures import Networks
from pvqae.model.autoencoder import as_onehot
from pvqae.model.backbones import Features, on_grid
from pvqae.prior.prior import BudgetPrior, Expected, expect
from pvqae.training.losses import ERRORS

REAL_USE = 0.02  # share of the cells below which a level is not in real use, see also `pvqae.calibration.thresholds`
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Use:
    """What each valid cell would gain from fine codes, and the level that it was given."""

    saving: Tensor  # n, error with all cells coarse - error with all cells fine
    levels: Tensor  # n

    @property
    def spearman(self) -> float | None:
        """The rank correlation of saving and level; None where one of them is constant."""
        return rank_correlation(self.saving, self.levels)

    def shares(self, count: int) -> list[float]:
        """Return the share of the cells on each of `count` levels, coarse to fine."""
        found = torch.bincount(self.levels, minlength=count).double() / max(1, len(self.levels))
        return [float(share) for share in found]


def rank_correlation(x_n: Tensor, y_n: Tensor) -> float | None:
    """Return Spearman's; None where one side is constant or there are fewer than three values."""
    if len(x_n) < 3 or bool((x_n == x_n[0]).all()) or bool((y_n == y_n[0]).all()):
        return None
    return float(spearmanr(x_n.double().numpy(), y_n.double().numpy()).statistic)


def _errors_with(networks: Networks, features: Features, valid_BSS: Tensor, levels_Bhw: Tensor) -> Tensor:
    """Reconstruct with the given level of each coarse cell; returns the error under each, B x h x w."""
    autoencoder, spec = networks.trained.autoencoder, networks.trained.autoencoder.spec
    inside = on_grid(valid_BSS, features.levels[-1].shape[-2:])
    output = autoencoder.reconstruct(features, inside, as_onehot(levels_Bhw, len(features.levels)))
    target = autoencoder.standardised_target(features)
    errors = ERRORS[spec.decoder](output.reconstruction, target, spec.groups)
    return F.adaptive_avg_pool2d(errors[:, None], (levels_Bhw.shape[-2], levels_Bhw.shape[-1]))[:, 0]


def _each(networks: Networks, examples: Examples) -> Iterator[tuple[Features, Tensor]]:
    """Yield features, cached or of a trained backbone, and which pixels are image."""
    for _, batch in examples.batches(_CHUNK):
        yield batch.features if batch.features is not None else networks.backbone(batch.images), batch.valid


def _own_levels(networks: Networks, features: Features) -> Tensor:
    autoencoder = networks.trained.autoencoder
    levels: Tensor = autoencoder.allocate(autoencoder.codes(features)).levels
    return levels


def _logits(networks: Networks, features: Features) -> Tensor:
    autoencoder = networks.trained.autoencoder
    logits: Tensor = autoencoder.router(autoencoder.codes(features))
    return logits


@torch.no_grad()
def logits_of(networks: Networks, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return the router's logits B x R x h x w of every view, and which coarse cells are image, B x h x w."""
    found = [_logits(networks, x).float() for x, _ in _each(networks, examples)]
    every = torch.cat(found)
    return every, on_grid(examples.valid, every.shape[-2:])


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Views as the decoder gives them back with the budget that normal views spend, and both budgets."""

    images: Tensor  # B x T x H x W
    expected: Tensor  # B x h x w
    own: Tensor  # B x h x w


@torch.no_grad()
def reconstruct(networks: Networks, examples: Examples) -> Reconstruction:
    """Reconstruct some views with the expected budget."""
    found = []
    for features, valid_BSS in _each(networks, examples):
        logits = _logits(networks, features)
        coarse = on_grid(valid_BSS, logits.shape[-2:])
        expected = expect(networks.trained.prior, logits, coarse).logits.argmax(-1).view(coarse.shape)
        inside = on_grid(valid_BSS, features.levels[-1].shape[-2:])
        output = networks.trained.autoencoder.reconstruct(features, inside, as_onehot(expected, len(features.levels)))
        found.append((output.reconstruction, expected, _own_levels(networks, features)))
    images, expected, own = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Reconstruction(images, expected, own)


@torch.no_grad()
def use(networks: Networks, normals: Examples) -> Use:
    """Do test 1 on the views of `normals`."""
    savings, levels = [], []
    for features, valid_BSS in _each(networks, normals):
        own = _own_levels(networks, features)
        coarse, fine = (
            _errors_with(networks, features, valid_BSS, torch.full_like(own, level))
            for level in (0, len(features.levels) - 1)
        )
        valid = on_grid(valid_BSS, own.shape[-2:])
        savings.append((coarse - fine)[valid])
        levels.append(own[valid])
    return Use(torch.cat(savings), torch.cat(levels))


@torch.no_grad()
def error_of(networks: Networks, normals: Examples) -> float:
    """Return the mean reconstruction error of the valid cells with the actual allocation."""
    found = []
    for features, valid_BSS in _each(networks, normals):
        levels = _own_levels(networks, features)
        errors = _errors_with(networks, features, valid_BSS, levels)
        found.append(errors[on_grid(valid_BSS, levels.shape[-2:])])
    return float(torch.cat(found).mean())


@torch.no_grad()
def shuffled_raise(networks: Networks, normals: Examples, seed: int) -> float:
    """Do test 2: return the share, e.g. 0.05, by which the error of `normals` rises with shuffled expected levels.

    Each view's levels are shuffled over its valid cells. Where all cells of a view expect one level nothing rises.
    """
    sums, draws = [0.0, 0.0], seeding.generator(seed, "shuffle")
    for features, valid_BSS in _each(networks, normals):
        logits = _logits(networks, features)
        valid = on_grid(valid_BSS, logits.shape[-2:])
        levels = expect(networks.trained.prior, logits, valid).logits.argmax(-1).view(valid.shape)
        for place, chosen in enumerate((levels, _shuffled(levels, valid, draws))):
            sums[place] += float(_errors_with(networks, features, valid_BSS, chosen)[valid].sum())
    return sums[1] / max(sums[0], 1e-12) - 1


def _shuffled(levels_Bhw: Tensor, valid_Bhw: Tensor, draws: torch.Generator) -> Tensor:
    """Put each view's levels in another order over its valid cells: the same shares, elsewhere."""
    out = levels_Bhw.clone()
    for levels, valid in zip(out, valid_Bhw, strict=True):
        own = levels[valid]
        levels[valid] = own[torch.randperm(len(own), generator=draws)]
    return out


class _StandIn(BudgetPrior):
    """Test 3: a budget in the prior's place. `level`: that level everywhere; None: what each cell actually spends."""

    def __init__(self, grid: tuple[int, int], levels: int, level: int | None):
        super().__init__(grid, levels, width=8)
        self.level = level

    def forward(
        self, logits_BNR: Tensor, masked_BN: Tensor, padding_BN: Tensor, asked_BA: Tensor | None = None
    ) -> Expected:
        """Ignore what is masked: a constant needs no input, and the actual allocation may look."""
        if asked_BA is not None:
            logits_BNR = logits_BNR.gather(1, asked_BA[..., None].expand(-1, -1, logits_BNR.shape[-1]))
        logits = logits_BNR
        if self.level is not None:
            logits = torch.full_like(logits_BNR, -10.0)
            logits[..., self.level] = 10.0
        return Expected(logits, logits_BNR, torch.zeros_like(logits_BNR))


def _stand_in(networks: Networks, level: int | None) -> Networks:
    """Return `networks` that reconstruct with one level everywhere, or (None) with the actual allocation."""
    prior = networks.trained.prior
    known = prior if isinstance(prior, BudgetPrior) else prior.members[0]
    put = _StandIn(known.grid, len(networks.trained.autoencoder.spec.channels), level)
    return networks.allocating(prior=put.eval().requires_grad_(False))


def _constant(networks: Networks, share: float) -> Networks:
    return _stand_in(networks, round(share * (len(networks.trained.autoencoder.spec.channels) - 1)))


# which budget the decoder reconstructs with; the expected one is the paper's
BUDGETS: dict[str, Callable[[Networks], Networks]] = {
    "expected": lambda networks: networks,
    "actual": lambda networks: _stand_in(networks, None),
    "coarse": partial(_constant, share=0.0),
    "medium": partial(_constant, share=0.5),
    "fine": partial(_constant, share=1.0),
}
