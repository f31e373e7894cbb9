import pytest
import torch

from pvqae.calibration import normals
from pvqae.calibration.normals import _PSEUDO as PSEUDO
from pvqae.inference.scoring import SCALES


def values(views: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Places differ in mean: n x 2 x 3 and all valid."""
    draw = torch.randn(views, 2, 3, generator=torch.Generator().manual_seed(0))
    return draw + 3 * torch.arange(6.0).view(2, 3), torch.ones(views, 2, 3, dtype=torch.bool)


@pytest.mark.parametrize("name", SCALES)
def test_normals_are_near_zero_and_what_exceeds_them_ranks_higher(name: str) -> None:
    x, valid = values()
    normal = normals.fit_statistics(x, valid)
    scaled = SCALES[name](normal, x)
    assert scaled.shape == x.shape
    assert -1 < scaled.mean() < 0.05 if name == "least" else scaled.mean().abs() < 0.05
    assert (SCALES[name](normal, x + 5) > scaled).all()
    assert torch.isfinite(scaled).all()


def test_a_place_is_compared_with_itself_or_with_all() -> None:
    x, valid = values()
    normal = normals.fit_statistics(x, valid)
    local, everywhere = (SCALES[name](normal, x) for name in ("location", "global"))
    assert local.mean(0).abs().max() < 0.2  # drawn a little towards the mean of all places
    assert everywhere.mean(0).abs().max() > 1
    torch.testing.assert_close(normal.global_mean, x.mean())
    torch.testing.assert_close(normal.global_deviation, x.std())
    share = len(x) / (len(x) + PSEUDO)
    torch.testing.assert_close(normal.mean, share * x.mean(0) + (1 - share) * x.mean())
    assert (normal.deviation > x.std(0)).all()  # drawn towards the larger deviation over all places


def test_padding_is_in_no_statistic() -> None:
    x, valid = values()
    valid[:20, 0] = False
    garbage = torch.where(valid, x, torch.full_like(x, 1e6))
    one, other = normals.fit_statistics(x, valid), normals.fit_statistics(garbage, valid)
    for name in ("mean", "deviation", "global_mean", "global_deviation"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    torch.testing.assert_close(one.mean[0], x[20:, 0].mean(0), atol=0.5, rtol=0)


def test_a_place_that_few_views_show_borrows_from_all() -> None:
    x, valid = values()
    valid[2:, 0, 0] = False
    valid[:, 1, 2] = False
    normal = normals.fit_statistics(x, valid)
    torch.testing.assert_close(normal.mean[1, 2], normal.global_mean)
    torch.testing.assert_close(normal.deviation[1, 2], normal.global_deviation)
    own, lent = x[:2, 0, 0].mean(), normal.global_mean
    torch.testing.assert_close(normal.mean[0, 0], (2 * own + PSEUDO * lent) / (2 + PSEUDO))
    assert (normal.mean[0, 1] - normal.global_mean).abs() > 1


def test_values_that_never_vary_give_finite_scores() -> None:
    normal = normals.fit_statistics(torch.full((5, 2, 2), 3.0), torch.ones(5, 2, 2, dtype=torch.bool))
    assert torch.isfinite(SCALES["location"](normal, torch.full((1, 2, 2), 4.0))).all()
    assert normal.global_deviation > 0
