from dataclasses import replace

import numpy as np
import pytest
import torch

from pvqae.calibration import fitting, normals
from pvqae.core import config
from pvqae.inference import measures
from pvqae.inference.measures import PRIOR_MEASURES
from pvqae.inference.scoring import Scorer
from pvqae.prior.prior import BudgetPrior, Expected

VALID = torch.ones(2, 128, 128, dtype=torch.bool)


def logits(seed: int = 0) -> torch.Tensor:
    """B x N x R, clear choices."""
    return 3 * torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PRIOR_MEASURES)
def test_an_unexpected_allocation_measures_higher_cell_by_cell(name: str) -> None:
    found = logits()
    right = Expected(found, found, torch.zeros_like(found))
    rolled = found.roll(1, dims=-1)
    wrong = Expected(rolled, rolled, torch.zeros_like(found))
    as_expected, surprising = PRIOR_MEASURES[name](right, found), PRIOR_MEASURES[name](wrong, found)
    assert as_expected.shape == (2, 16)
    assert (as_expected >= 0).all()
    assert (surprising > as_expected).all()


@pytest.mark.parametrize("name", PRIOR_MEASURES)
def test_certainty_in_the_wrong_is_bounded(name: str) -> None:
    certain = torch.tensor([[[60.0, -60.0, -60.0]]])
    expected = Expected(certain.flip(-1), certain, torch.full_like(certain, -6))
    assert torch.isfinite(PRIOR_MEASURES[name](expected, certain)).all()
    assert PRIOR_MEASURES["cross_entropy"](expected, certain).item() == pytest.approx(
        -np.log(measures._PROBABILITY_FLOOR), rel=1e-4
    )


def test_gaussian_deviations_are_in_expected_deviations() -> None:
    expected = Expected(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.log(torch.tensor([[[4.0, 1.0]]])))
    assert PRIOR_MEASURES["gaussian"](expected, torch.tensor([[[2.0, 3.0]]])).item() == pytest.approx((1 + 9) / 2)


def test_whitened_normals_are_white_and_lengths_are_mahalanobis() -> None:
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    residuals = torch.randn(4000, 5, generator=torch.Generator().manual_seed(1)) @ mix
    whitening = normals.residual_whitening(residuals, ridge=0.0)
    white = residuals @ whitening
    torch.testing.assert_close(white.T @ white / 4000, torch.eye(5), atol=0.01, rtol=0)
    x = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(2))
    inverse = np.linalg.inv(np.cov(residuals.double().numpy().T, bias=True))
    vector = x[0, :, 1, 2].double().numpy()
    expected = np.sqrt(vector @ inverse @ vector / 5)
    assert measures.whiten(x, whitening)[0, 1, 2].item() == pytest.approx(expected, rel=1e-3)


def test_a_channel_without_variance_is_whitened_finitely() -> None:
    residuals = torch.randn(100, 3)
    residuals[:, 2] = 0
    assert torch.isfinite(normals.residual_whitening(residuals)).all()


@pytest.fixture
def features(scorer: Scorer) -> measures.Features:
    pixels = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found: measures.Features = scorer.networks.backbone(pixels)
    return found


def always(level: int) -> BudgetPrior:
    """A prior that expects one level everywhere."""
    prior = BudgetPrior((4, 4), 3, 16).eval().requires_grad_(False)
    prior.output[1].weight.zero_()
    prior.output[1].bias.zero_()
    prior.output[1].bias[level] = 9
    return prior


@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_is_reconstructed_is_the_expected_budget_not_the_spent_one(
    scorer: Scorer, features: measures.Features, level: int
) -> None:
    networks = scorer.networks.allocating(prior=always(level))
    raw = measures.measure(networks, features, VALID)
    assert (raw.budget.expected == level).all()
    assert networks.whitening is not None
    everywhere = torch.full((2, 4, 4), level)
    autoencoder = networks.trained.autoencoder
    onehot = torch.nn.functional.one_hot(everywhere, 3).movedim(-1, 1).float()
    output = autoencoder.reconstruct(features, torch.ones(2, 16, 16, dtype=torch.bool), onehot)
    left = autoencoder.standardised_target(features) - output.reconstruction
    torch.testing.assert_close(raw.maps["decoder"], measures.whiten(left, networks.whitening))
    assert torch.equal(raw.budget.levels, autoencoder.allocate(autoencoder.codes(features)).levels)


def test_each_measure_has_its_own_grid_and_is_never_negative(scorer: Scorer, features: measures.Features) -> None:
    raw = measures.measure(scorer.networks, features, VALID)
    grids = {name: tuple(x.shape) for name, x in raw.maps.items()}
    assert grids == {
        "stride32": (2, 4, 4),
        "stride16": (2, 8, 8),
        "stride8": (2, 16, 16),
        "joint": (2, 16, 16),
        "place": (2, 16, 16),
        "decoder": (2, 16, 16),
    }
    assert {name: tuple(x.shape) for name, x in raw.valid.items()} == grids
    assert raw.budget.unlikely.shape == raw.budget.levels.shape == (2, 4, 4)
    assert all((x >= 0).all() for x in (*raw.maps.values(), raw.budget.unlikely))


def test_nothing_that_is_not_scored_is_computed(scorer: Scorer, features: measures.Features) -> None:
    bare = replace(scorer.networks, memories={}, whitening=None)
    assert measures.measure(bare, features, VALID).maps == {}


def test_a_score_of_the_memory_asks_for_no_budget(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[measures.Features] = []
    budget = measures._budget
    monkeypatch.setattr(measures, "_budget", lambda n, x, valid: asked.append(x) or budget(n, x, valid))
    reader = replace(scorer, networks=replace(scorer.networks, whitening=None), score=config.Score(recon="memory"))
    scored = reader.one(np.full((128, 128, 3), 0.5, dtype=np.float32))
    assert np.isfinite([scored.image_score, *scored.anomaly_map.flat]).all()
    assert not asked
    assert np.isfinite(list(scored.parts.values())).all()
    assert scored.levels.shape == scored.expected_levels.shape == (4, 4)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("shares", "usage", "words"),
    [
        ([0.2, 0.5, 0.3], 0.5, []),
        ([0.005, 0.99, 0.005], 0.5, ["level 1 has 99.0%"]),
        ([0.3, 0.3, 0.4], 0.01, ["1.0% of the codebook"]),
        ([1.0, 0.0], 0.0, ["level 0", "codebook"]),
        ([1.0], 0.5, []),  # one level has nothing to choose
    ],
)
def test_a_collapse_is_told_in_words(shares: list[float], usage: float, words: list[str]) -> None:
    found = fitting._collapse(shares, usage)
    assert len(found) == len(words)
    assert all(part in text for part, text in zip(words, found, strict=True))
    assert all(text.startswith("collapse: ") for text in found)
