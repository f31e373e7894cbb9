import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvqae.model.autoencoder import Codebook, _least_by_groups, cover, nearest, usage


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def started() -> Codebook:
    """8 codes of width 4."""
    codebook = Codebook(8, 4, commitment=0.25, decay=0.9)
    codebook.start(random(60, 4))
    return codebook


def test_indices_are_those_of_a_brute_force_search() -> None:
    x, codes = random(50, 6), random(17, 6, seed=1)
    squares = (x[:, None] - codes).square().sum(-1)
    distances, indices = nearest(x, codes)
    assert torch.equal(indices, squares.argmin(1))
    torch.testing.assert_close(distances, squares.min(1).values, atol=1e-5, rtol=1e-5)


def test_a_distance_is_never_negative_and_taken_in_float32() -> None:
    codes = 100 + 0.01 * random(9, 4)
    distances, indices = nearest(codes, codes)
    assert (distances >= 0).all()
    assert nearest(random(5, 4).bfloat16(), random(3, 4))[0].dtype == torch.float32
    assert indices.shape == (9,)


def test_autocast_does_not_make_near_neighbours_alike() -> None:
    codes = 10 + 0.01 * random(50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        distances, indices = nearest(codes, codes)
    assert torch.equal(indices, torch.arange(50))
    assert distances.dtype == torch.float32


def test_codes_are_fixed_points(started: Codebook) -> None:
    quantised = started(started.codes.clone())
    torch.testing.assert_close(quantised.vectors, started.codes)
    assert torch.equal(quantised.indices, torch.arange(8))
    assert quantised.loss.item() == pytest.approx(0, abs=1e-12)
    again = started(started(random(20, 4, seed=2)).vectors)
    torch.testing.assert_close(again.vectors, started.codes[again.indices])


def test_outputs_are_the_nearest_codes(started: Codebook) -> None:
    x = random(30, 4, seed=3)
    quantised = started(x)
    torch.testing.assert_close(quantised.vectors, started.codes[torch.cdist(x, started.codes).argmin(1)])


def test_commitment_pulls_the_encoder_with_beta_and_never_the_codes(started: Codebook) -> None:
    z = random(10, 4, seed=4).requires_grad_()
    started.codes.requires_grad_()
    quantised = started(z)
    (on_z,) = torch.autograd.grad(quantised.loss, z, retain_graph=True)
    chosen = started.codes[quantised.indices].detach()
    torch.testing.assert_close(on_z, 2 * 0.25 * (z.detach() - chosen) / z.numel())
    assert 0.25 * torch.nn.functional.mse_loss(z, chosen).item() == pytest.approx(quantised.loss.item())


def test_codes_have_no_gradient_at_all(started: Codebook) -> None:
    assert list(started.parameters()) == []
    assert all(not buffer.requires_grad for buffer in started.buffers())


def test_the_gradient_passes_straight_through(started: Codebook) -> None:
    z, upstream = random(10, 4).requires_grad_(), random(10, 4, seed=5)
    (on_z,) = torch.autograd.grad((started(z).vectors * upstream).sum(), z)
    torch.testing.assert_close(on_z, upstream)


def test_before_start_vectors_pass_unquantised() -> None:
    x = random(5, 4)
    vectors, indices, loss = Codebook(8, 4, 0.25, 0.9)(x)
    assert torch.equal(vectors, x)
    assert indices.tolist() == [-1] * 5
    assert loss.item() == 0


def test_updates_carry_codes_to_the_mean_of_their_vectors() -> None:
    codebook = Codebook(2, 2, 0.25, 0.8)
    codebook.start(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    x = torch.cat([random(20, 2) + 1, random(30, 2, seed=1) + 9])
    for _ in range(80):
        codebook.update(x, nearest(x, codebook.codes)[1])
    means = torch.stack([x[:20].mean(0), x[20:].mean(0)])
    torch.testing.assert_close(codebook.codes, means, atol=1e-3, rtol=0)


def test_one_update_moves_by_the_decay() -> None:
    codebook = Codebook(1, 1, 0.25, 0.9)
    codebook.start(torch.tensor([[0.0]]))
    codebook.update(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]))
    assert codebook.counts.item() == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert codebook.codes.item() == pytest.approx(0.1 * 6 / 1.1)  # the sum started at 0


def test_dead_codes_are_revived_at_the_worst_covered_vectors() -> None:
    codebook = Codebook(3, 1, 0.25, 0.5)
    codebook.start(torch.tensor([[0.0], [1.0], [100.0]]))
    x = torch.tensor([[0.0], [1.0], [1.0], [1.0], [1.6]])  # a mean of 1.15 serves 1.6 worst
    far = int(codebook.codes.argmax())
    updates = 0
    while codebook.codes.max() > 50:
        codebook.update(x, nearest(x, codebook.codes)[1])
        updates += 1
    assert updates == 6  # 0.5^6 is below 0.03: 100 serves nothing
    revived = [values.flatten()[far].item() for values in (codebook.codes, codebook.sums, codebook.counts)]
    assert revived == [pytest.approx(1.6), pytest.approx(1.6), 1.0]


def test_start_covers_and_repeats_where_vectors_are_few(started: Codebook) -> None:
    assert bool(started.started)
    few = Codebook(8, 4, 0.25, 0.9)
    few.start(random(3, 4))
    assert len(few.codes.unique(dim=0)) == 3
    assert torch.equal(few.counts, torch.ones(8))
    assert torch.equal(few.sums, few.codes)


def radius(x: torch.Tensor, centres: torch.Tensor) -> float:
    return float(torch.cdist(x, centres).min(1).values.max())


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_cover_is_within_twice_the_best_radius(seed: int, count: int) -> None:
    x = random(8, 2, seed=seed)
    best = min(radius(x, x[list(chosen)]) for chosen in itertools.combinations(range(8), count))
    assert radius(x, x[cover(x, count)]) <= 2 * best + 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_cover_serves_rare_vectors_better_than_a_random_choice(seed: int) -> None:
    x = torch.cat([random(300, 3, seed=seed), 8 + random(5, 3, seed=seed + 1)])
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:10]
    assert radius(x, x[cover(x, 10)]) < radius(x, x[drawn])


@pytest.mark.parametrize("dim", [1, 3, 40])
@pytest.mark.parametrize("whole_numbers", [False, True], ids=["apart", "many alike"])
def test_cover_takes_the_farthest_row_each_time(dim: int, whole_numbers: bool) -> None:
    x = random(1500, dim, seed=dim)
    x = (3 * x).round() if whole_numbers else x
    distances = torch.cdist(x.double(), x.double())
    nearest = torch.full((len(x),), torch.inf, dtype=torch.double)
    for index in cover(x, 600).tolist():
        assert nearest[index] >= nearest.max() - 1e-3
        nearest = torch.minimum(nearest, distances[index])
        nearest[index] = -torch.inf


def test_cover_never_repeats_a_row_and_takes_all_of_few() -> None:
    x = torch.zeros(6, 2)  # all alike
    assert sorted(cover(x, 4).tolist()) == sorted(set(cover(x, 4).tolist()))
    assert sorted(cover(random(5, 2), 9).tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(cover(random(40, 3), 7), cover(random(40, 3), 7))


@pytest.mark.parametrize(
    ("indices", "share", "perplexity"),
    [([0, 1, 2, 3], 1.0, 4.0), ([2, 2, 2], 0.25, 1.0), ([0, 0, 1, 1], 0.5, 2.0)],
)
def test_usage_and_perplexity(indices: list[int], share: float, perplexity: float) -> None:
    found = usage(torch.tensor(indices), 4)
    assert found[0] == share
    assert math.isclose(found[1], perplexity, rel_tol=1e-5)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 2048])
def test_the_least_by_groups_is_the_first_least_of_all(count: int) -> None:
    values = torch.randint(0, 50, (40, count), generator=torch.Generator().manual_seed(count)).float()
    least, place = _least_by_groups(values)
    assert torch.equal(least, values.amin(1))
    assert torch.equal(place, values.argmin(1))
