"""Priors over codes: a cell is told by what is around it, never by itself, and no normal by what it taught."""

import math

import pytest
import torch
from torch import Tensor

from flows.experiments import code_prior
from flows.experiments.code_prior import Codebook, Codes, Halves

CODES, SIDE = 4, 12


def striped(count: int, seed: int = 0) -> Codes:
    """Views of stripes three cells wide that begin anywhere: neighbours tell the code, places do not."""
    start = torch.randint(12, (count, 1, 1), generator=torch.Generator().manual_seed(seed))
    columns = (torch.arange(SIDE) + start) // 3 % CODES
    return Codes(columns.expand(count, SIDE, SIDE).contiguous(), CODES)


@pytest.fixture(scope="module")
def halves() -> Halves:
    seen = striped(40)
    return code_prior.fit_halves([(seen, torch.arange(40) % 2 == 0)], 60, 0, "striped")


def test_context_tells_what_frequencies_do_not(halves: Halves) -> None:
    unseen, second = striped(10, seed=1), torch.arange(10) % 2 == 0
    table = code_prior.fit_halves([(unseen, second)], 0, 0)
    assert float(halves.unseen(unseen).mean()) < 0.1
    assert float(table.normals(unseen, second).mean()) > 1.0


def test_an_odd_code_is_unlikely_up_to_the_floor(halves: Halves) -> None:
    views = striped(3, seed=2)
    odd = views.index.clone()
    odd[0, 6, 6] = (odd[0, 6, 6] + 2) % CODES
    found = halves.unseen(Codes(odd, CODES))
    assert float(found[0, 6, 6]) > 3
    assert float(found.max()) <= -math.log(1e-3) + 1e-4


def test_a_cell_and_its_neighbours_are_hidden_from_its_prediction(halves: Halves) -> None:
    index = striped(1).index
    changed = index.clone()
    changed[0, 5:8, 5:8] = (changed[0, 5:8, 5:8] + 1) % CODES
    prior = halves.priors[0]
    torch.testing.assert_close(prior(index)[0, 6, 6], prior(changed)[0, 6, 6])
    assert not torch.allclose(prior(index)[0, 6, 8], prior(changed)[0, 6, 8])


def test_no_normal_is_judged_by_the_prior_that_it_taught(halves: Halves) -> None:
    """The first half's prior is made to find everything impossible: only what it judges shows that."""
    seen, second = striped(6), torch.tensor([True, False] * 3)
    taught_by_second, taught_by_first = halves.priors
    found = Halves((taught_by_second, taught_by_first)).normals(seen, second)
    expected = torch.stack(
        [
            code_prior.nats(taught_by_first if own else taught_by_second, seen.of(torch.tensor([i])))[0]
            for i, own in enumerate(second.tolist())
        ]
    )
    torch.testing.assert_close(found, expected)


def test_padding_has_no_code_and_adds_nothing(halves: Halves) -> None:
    book = Codebook.fit(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), CODES, seed=0)
    valid = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    valid[:, :, 8:] = False
    index = book.encode(torch.randn(2, 5, SIDE, SIDE), valid)
    codes = Codes(index, CODES)
    assert torch.equal(codes.valid, valid)
    assert bool((halves.unseen(codes)[~valid] == 0).all())


def test_codes_are_the_nearest_centres() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    picture = torch.tensor([[9.0, 1.0], [1.0, 8.0]]).T.reshape(1, 2, 1, 2)
    found: Tensor = code_prior.encode(picture, centres, torch.ones(1, 1, 2, dtype=torch.bool))
    assert found.flatten().tolist() == [1, 2]


def test_priors_are_the_same_after_a_file(halves: Halves) -> None:
    again = code_prior.from_tensors(code_prior.as_tensors({"stride8": halves}))["stride8"]
    views = striped(2, seed=3)
    torch.testing.assert_close(again.unseen(views), halves.unseen(views), rtol=0, atol=0)
