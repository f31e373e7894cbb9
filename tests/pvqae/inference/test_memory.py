import pytest
import torch

from pvqae.calibration.normals import CellSample, fit_memory
from pvqae.calibration.normals import _rounded as rounded
from pvqae.inference.measures import Memory, Projection
from pvqae.model.backbones import averaged, cells_of


def features(seed: int = 0, views: int = 4, side: int = 6) -> torch.Tensor:
    """n x 3 x side x side, as cached: half precision."""
    return (2 + torch.randn(views, 3, side, side, generator=torch.Generator().manual_seed(seed))).half()


def everything(views: int = 4, side: int = 48) -> torch.Tensor:
    return torch.ones(views, side, side, dtype=torch.bool)


GROUPS = torch.tensor([0, 0, 1, 2])


def fitted(
    x: torch.Tensor, codes: int = 500, patches: int = 500, valid: torch.Tensor | None = None, neighbours: int = 0
) -> Memory:
    """Of the averaged features, two views at a time."""
    valid = everything() if valid is None else valid
    sample = CellSample.draw(cells_of(valid, x.shape[-2:]), patches, 0, "full/0")
    vectors = torch.cat([sample.vectors(averaged(x[i : i + 2].float()), i) for i in (0, 2)])
    return fit_memory(vectors, GROUPS[sample.views], codes, neighbours=neighbours)


def distances(level: Memory, x: torch.Tensor, without_group: torch.Tensor | None = None) -> torch.Tensor:
    """Where nothing is padding."""
    return level.distances(averaged(x), torch.ones(len(x), 6, 6, dtype=torch.bool), without_group)


def plain_distances(level: Memory, vectors: torch.Tensor) -> torch.Tensor:
    return torch.cdist(vectors, level.codes).min(-1).values


def test_every_code_is_one_of_the_vectors_of_its_group() -> None:
    x = features()
    level = fitted(x, codes=20)
    assert level.codes.shape == (20, 3)
    vectors = level.vectors(averaged(x.float()))
    for code, owner in zip(level.codes, level.owners, strict=True):
        own = vectors[owner == GROUPS].flatten(0, 1)
        assert ((own - code).abs() <= level.step * 0.501).all(1).any()  # rounded to the nearest step


def test_codes_are_what_bytes_keep() -> None:
    level = fitted(features())
    kept = level.as_bytes()
    assert kept.dtype == torch.int8
    assert (kept.abs().amax(0) == 127).all()
    assert torch.equal(kept.float() * level.step, level.codes)


def test_a_channel_that_is_always_zero_stays_zero() -> None:
    codes, step = rounded(torch.tensor([[0.0, 1.0], [0.0, -2.0]]))
    assert codes[:, 0].tolist() == [0.0, 0.0]
    assert (step > 0).all()


def test_vectors_of_all_normals_are_standardised() -> None:
    uneven = averaged(features().float()) * torch.tensor([0.01, 1.0, 50.0])[:, None, None]
    vectors = fitted(uneven.half()).vectors(averaged(uneven.half().float())).flatten(0, 1)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(vectors.std(0), torch.ones(3), atol=0.05, rtol=0)


def test_the_average_is_the_mean_over_neighbours() -> None:
    x = features(1).float()
    torch.testing.assert_close(averaged(x)[0, :, 3, 4], x[0, :, 2:5, 3:6].mean((1, 2)))
    torch.testing.assert_close(averaged(x)[0, :, 0, 0], x[0, :, :2, :2].mean((1, 2)))


def test_a_known_vector_is_at_no_distance_before_smoothing() -> None:
    x = features()
    level = fitted(x)  # all 144 vectors are codes
    assert len(level.codes) == 144
    rounding = float(level.step.norm()) / 2
    assert plain_distances(level, level.vectors(averaged(x.float()))).max() <= rounding * 1.01 < 0.05
    assert distances(level, x.float()).max() <= rounding * 1.01


def test_distances_are_those_of_a_plain_search_smoothed_over_neighbours() -> None:
    level, x = fitted(features(), codes=10), features(1).float()
    plain = plain_distances(level, level.vectors(averaged(x))).view(4, 6, 6)
    found = distances(level, x)
    assert found.shape == (4, 6, 6)
    torch.testing.assert_close(found[0, 2, 3], plain[0, 1:4, 2:5].mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0, 0, 0], plain[0, :2, :2].mean(), atol=1e-4, rtol=0)


def test_a_distance_counts_in_units_of_how_far_its_code_s_neighbours_are() -> None:
    x = features()
    level, plain = fitted(x, codes=40, neighbours=3), fitted(x, codes=40)
    between = torch.cdist(plain.codes, plain.codes).sort(1).values
    assert level.spacing is not None
    torch.testing.assert_close(level.spacing, between[:, 1:4].mean(1), atol=2e-3, rtol=0)
    assert torch.equal(level.spacing, level.spacing.half().float())  # as a bundle keeps it
    vectors = plain.vectors(averaged(features(1).float())).flatten(0, 1)
    distance, nearest = torch.cdist(vectors, plain.codes).min(1)
    torch.testing.assert_close(level.away(vectors), distance / level.spacing[nearest], atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.away(vectors), distance, atol=1e-4, rtol=0)


def test_more_neighbours_than_codes_are_all_others() -> None:
    x = features()
    few, every = fitted(x, codes=5, neighbours=30), fitted(x, codes=5, neighbours=4)
    assert few.spacing is not None
    assert every.spacing is not None
    assert torch.equal(few.spacing, every.spacing)
    assert fitted(x, codes=1, neighbours=30).spacing is None


def test_codes_without_their_group_keep_their_spacing() -> None:
    level = fitted(features(), codes=40, neighbours=3)
    apart = level.apart_from(1)
    assert level.spacing is not None
    assert apart.spacing is not None
    assert torch.equal(apart.spacing, level.spacing[level.owners != 1])


def test_equal_codes_divide_by_no_zero() -> None:
    """As on a plain background, which is one vector over and over."""
    plain = torch.ones(4, 3, 6, 6)
    assert fitted(plain, neighbours=3).spacing is None  # nothing to divide by
    mixed = torch.cat([plain[:3], features()[:1].float()])
    level = fitted(mixed, neighbours=3)
    assert level.spacing is not None
    equal = level.spacing == level.spacing.min()
    assert equal.sum() >= 108
    torch.testing.assert_close(level.spacing.min(), level.spacing[~equal].mean() / 2, atol=0.05, rtol=0)
    assert torch.isfinite(distances(level, mixed)).all()


def test_a_training_image_is_not_judged_by_its_own_group() -> None:
    x = features()
    level = fitted(x)
    alone, all_codes = distances(level, x.float(), GROUPS), distances(level, x.float())
    assert (alone >= all_codes - 1e-6).all()
    assert alone.min() > 0.05 > all_codes.max()
    without_first = Memory(level.mean, level.scale, level.codes[level.owners != 0], level.step, level.owners)
    torch.testing.assert_close(alone[:2], distances(without_first, x[:2].float()))


def test_padding_beyond_the_reach_of_pooling_never_enters() -> None:
    x, valid = features(), everything()
    valid[:, :, :16] = False  # the two left columns
    garbage = x.clone()
    garbage[..., :1] = 900.0
    one, other = fitted(x, valid=valid), fitted(garbage, valid=valid)
    for name in ("mean", "scale", "codes", "owners"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert len(one.codes) == 4 * 6 * 4


def test_what_lies_deep_in_padding_reaches_no_distance_of_the_image() -> None:
    x, valid = features(1).float(), torch.ones(4, 6, 6, dtype=torch.bool)
    valid[..., :2] = False
    garbage = x.clone()
    garbage[..., :1] = 900.0
    level = fitted(features(), codes=40)
    one, other = (level.distances(averaged(some), valid)[..., 2:] for some in (x, garbage))
    assert torch.equal(one, other)
    torch.testing.assert_close(one[..., 2:], distances(level, x)[..., 4:])  # pooled and smoothed: two cells' reach


def test_at_most_so_many_patches_and_codes_and_the_same_each_time() -> None:
    level = fitted(features(), codes=500, patches=30)
    assert len(level.codes) == 30
    assert torch.equal(level.codes, fitted(features(), codes=500, patches=30).codes)


def test_a_channel_that_never_varies_does_no_harm() -> None:
    x = features()
    x[:, 1] = 0.5
    assert torch.isfinite(distances(fitted(x), x.float())).all()


def test_a_foreign_vector_is_farther_than_any_known_one() -> None:
    level, x = fitted(features(), codes=40), features(1).float()
    odd = x.clone()
    odd[0, :, 3, 3] += 40
    found = distances(level, odd)
    assert found[0, 3, 3] > 1.5 * distances(level, x).max()
    assert int(found.argmax()) in {r * 6 + c for r in (2, 3, 4) for c in (2, 3, 4)}


@pytest.mark.parametrize("codes", [1, 7])
def test_few_codes_are_enough_to_run(codes: int) -> None:
    assert fitted(features(), codes=codes).codes.shape == (codes, 3)


def test_a_projection_is_orthogonal_and_keeps_distances() -> None:
    projection = Projection.draw(768, 320, torch.Generator().manual_seed(0))
    matrix = projection.matrix
    torch.testing.assert_close(matrix.T @ matrix * 320 / 768, torch.eye(320), atol=1e-5, rtol=0)
    pairs = torch.randn(2, 500, 768, generator=torch.Generator().manual_seed(1))
    kept = (pairs[0] - pairs[1]) @ matrix
    ratio = kept.norm(dim=1) / (pairs[0] - pairs[1]).norm(dim=1)
    assert (ratio - 1).abs().max() < 0.15
    assert abs(float(ratio.mean()) - 1) < 0.01


def test_wide_features_are_projected_after_they_are_standardised() -> None:
    """A loud channel says no more than the others."""
    vectors = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    groups = torch.zeros(200, dtype=torch.long)
    quiet, loud = vectors.clone(), vectors.clone()
    loud[:, 0] *= 1000
    found = [fit_memory(x, groups, 50, width=6, seed=3) for x in (quiet, loud)]
    assert found[0].codes.shape == (50, 6)
    torch.testing.assert_close(found[0].codes, found[1].codes)
    assert fit_memory(vectors, groups, 50, width=12).projection is None
    cells = vectors.T.view(1, 12, 10, 20)
    own = found[0].distances(cells, torch.ones(1, 10, 20, dtype=torch.bool))
    assert found[0].projection is not None
    projected = (quiet - quiet.mean(0)) * found[0].scale @ found[0].projection.matrix
    plain = plain_distances(found[0], projected).view(1, 10, 20)
    expected = found[0].smoothed(plain, torch.ones(1, 10, 20, dtype=torch.bool))
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
