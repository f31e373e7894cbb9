import pytest
import torch

from pvqae.inference import statistics
from pvqae.inference.statistics import LEAST, SCALES


def values(views: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Places differ in mean: n x 2 x 3 and all valid."""
    draw = torch.randn(views, 2, 3, generator=torch.Generator().manual_seed(0))
    return draw + 10 * torch.arange(6.0).view(2, 3), torch.ones(views, 2, 3, dtype=torch.bool)


@pytest.mark.parametrize("name", SCALES)
def test_normals_are_near_zero_and_what_exceeds_them_ranks_higher(name: str) -> None:
    x, valid = values()
    normal = statistics.fit(x, valid)
    scaled = SCALES[name](normal, x)
    assert scaled.shape == x.shape
    assert scaled.mean().abs() < 0.01
    assert (SCALES[name](normal, x + 5) > scaled).all()
    assert torch.isfinite(scaled).all()


def test_a_place_is_compared_with_itself_or_with_all() -> None:
    x, valid = values()
    normal = statistics.fit(x, valid)
    local, everywhere = (SCALES[name](normal, x) for name in ("location", "global"))
    assert local.mean(0).abs().max() < 0.01
    assert everywhere.mean(0).abs().max() > 1
    torch.testing.assert_close(normal.global_mean, x.mean())
    torch.testing.assert_close(normal.global_deviation, x.std())
    torch.testing.assert_close(normal.mean, x.mean(0))
    assert (normal.deviation > x.std(0)).all()  # a tenth of the global one is added


def test_padding_is_in_no_statistic() -> None:
    x, valid = values()
    valid[:20, 0] = False
    garbage = torch.where(valid, x, torch.full_like(x, 1e6))
    one, other = statistics.fit(x, valid), statistics.fit(garbage, valid)
    for name in ("mean", "deviation", "global_mean", "global_deviation"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    torch.testing.assert_close(one.mean[0], x[20:, 0].mean(0))


def test_a_place_that_few_views_show_borrows_from_all() -> None:
    x, valid = values()
    valid[LEAST - 1 :, 0, 0] = False
    valid[:, 1, 2] = False
    normal = statistics.fit(x, valid)
    assert normal.mean[0, 0] == normal.global_mean
    assert normal.deviation[0, 0] == normal.global_deviation
    assert normal.mean[1, 2] == normal.global_mean
    assert normal.mean[0, 1] != normal.global_mean


def test_values_that_never_vary_give_finite_scores() -> None:
    normal = statistics.fit(torch.full((5, 2, 2), 3.0), torch.ones(5, 2, 2, dtype=torch.bool))
    assert torch.isfinite(statistics.per_location(normal, torch.full((1, 2, 2), 4.0))).all()
    assert normal.global_deviation > 0
