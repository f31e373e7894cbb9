import pytest
import torch

from pvqae.prior.learn import _random_masks
from pvqae.prior.prior import BudgetPrior, _complementary_masks, _turns, expect

GRIDS = [(1, 1), (2, 2), (4, 4), (8, 8), (3, 7)]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(grid: tuple[int, int], levels: int = 3) -> BudgetPrior:
    torch.manual_seed(0)
    made = BudgetPrior(grid, levels, 16).eval().requires_grad_(False)
    made.output[1].weight.normal_()  # a new one starts from its base alone, and looks at nothing
    return made


def test_a_started_prior_expects_the_statistics_of_each_position() -> None:
    made = BudgetPrior((2, 2), 3, 16).eval().requires_grad_(False)
    logits = torch.zeros(8, 4, 3)
    logits[:6, :, 1], logits[6:, :, 2] = 2.0, 2.0
    made.start(logits, torch.ones(8, 4, dtype=torch.bool))
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    expected = made(logits[:1], ~nothing, nothing)
    torch.testing.assert_close(expected.logits.softmax(-1)[0, 0], torch.tensor([1 / 11, 7 / 11, 3 / 11]))
    torch.testing.assert_close(expected.mean[0, 0], torch.tensor([0.0, 1.5, 0.5]))


def blocked(grid: tuple[int, int], cell: int) -> set[int]:
    """The cell and its neighbours."""
    row, column = divmod(cell, grid[1])
    return {
        r * grid[1] + c
        for r in range(max(0, row - 1), min(grid[0], row + 2))
        for c in range(max(0, column - 1), min(grid[1], column + 2))
    }


@pytest.mark.parametrize("grid", GRIDS)
def test_each_cell_is_asked_once_while_its_neighbourhood_is_hidden(grid: tuple[int, int]) -> None:
    asked, hidden = _complementary_masks(grid)
    assert asked.shape == hidden.shape
    assert asked.any(1).all()
    assert torch.equal(asked.sum(0), torch.ones(grid[0] * grid[1], dtype=torch.long))
    for cell in range(grid[0] * grid[1]):
        pass_of_cell = int(asked[:, cell].int().argmax())
        assert blocked(grid, cell) <= set(hidden[pass_of_cell].nonzero()[:, 0].tolist())


@pytest.mark.parametrize("grid", GRIDS)
def test_turns_lead_to_every_cell(grid: tuple[int, int]) -> None:
    (cells, which, place), (asked, _) = _turns(grid), _complementary_masks(grid)
    assert cells[which, place].tolist() == list(range(grid[0] * grid[1]))
    assert torch.equal(which, asked.int().argmax(0))
    assert asked.gather(1, cells).all()


def test_asked_cells_are_predicted_as_among_all() -> None:
    network, cells = prior((4, 4)), torch.tensor([[3, 0, 9], [15, 7, 1]])
    logits = torch.randn(2, 16, 3, generator=draws())
    masked, padding = torch.rand(2, 16, generator=draws()) < 0.3, torch.zeros(2, 16, dtype=torch.bool)
    padding[0, 12:] = True
    every, some = network(logits, masked, padding), network(logits, masked, padding, cells)
    for whole, part in zip(every, some, strict=True):
        torch.testing.assert_close(part, whole.gather(1, cells[..., None].expand(-1, -1, 3)), atol=1e-5, rtol=1e-5)


def test_a_large_grid_keeps_most_of_its_cells_visible() -> None:
    _, hidden = _complementary_masks((8, 8))
    assert hidden.float().mean(1).max() < 0.6


@pytest.mark.parametrize("grid", [(4, 4), (8, 8)])
def test_a_hidden_cell_does_not_see_itself(grid: tuple[int, int]) -> None:
    network = prior(grid)
    logits = torch.randn(1, grid[0] * grid[1], 3, generator=draws())
    nothing = torch.zeros(1, grid[0] * grid[1], dtype=torch.bool)
    masked = nothing.clone()
    masked[0, 5] = True
    changed = logits.clone()
    changed[0, 5] += 4
    for before, after in zip(network(logits, masked, nothing), network(changed, masked, nothing), strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(network(logits, nothing, nothing).mean, network(changed, nothing, nothing).mean)


def test_an_expectation_ignores_the_cell_and_its_neighbours_but_not_the_rest() -> None:
    network = prior((8, 8))
    logits, valid = torch.randn(1, 3, 8, 8, generator=draws()), torch.ones(1, 8, 8, dtype=torch.bool)
    cell = 3 * 8 + 4
    near, far = logits.clone(), logits.clone()
    near[0, :, 2:5, 3:6] += 3
    far[0, :, 0, 7] += 3
    base = expect(network, logits, valid).mean[0, cell]
    torch.testing.assert_close(expect(network, near, valid).mean[0, cell], base, atol=1e-5, rtol=0)
    assert (expect(network, far, valid).mean[0, cell] - base).abs().max() > 1e-4


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_expectations_have_a_value_per_view_cell_and_level(levels: int) -> None:
    valid = torch.ones(5, 4, 2, dtype=torch.bool)
    found = expect(prior((4, 2), levels), torch.randn(5, levels, 4, 2, generator=draws()), valid)
    assert [x.shape for x in found] == [(5, 8, levels)] * 3
    assert found.log_variance.abs().max() <= 6


def test_a_view_is_expected_alike_alone_and_in_a_batch() -> None:
    network, logits = prior((4, 4)), torch.randn(3, 3, 4, 4, generator=draws())
    valid = torch.ones(3, 4, 4, dtype=torch.bool)
    valid[1, :, :2] = False
    together = expect(network, logits, valid)
    alone = expect(network, logits[1:2], valid[1:2])
    torch.testing.assert_close(together.mean[1], alone.mean[0], atol=1e-5, rtol=1e-5)


def test_padding_takes_no_part() -> None:
    network, logits = prior((4, 4)), torch.randn(1, 3, 4, 4, generator=draws())
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, :, 3] = False
    changed = logits.clone()
    changed[:, :, :, 3] = 5
    before, after = (expect(network, x, valid).mean[0][valid[0].flatten()] for x in (logits, changed))
    assert torch.equal(before, after)
    network.position[~valid[0].flatten()] += 5  # not even that it is there
    assert torch.equal(expect(network, logits, valid).mean[0][valid[0].flatten()], before)
    seen = expect(network, logits, torch.ones_like(valid)).mean[0][valid[0].flatten()]
    assert (seen - before).abs().max() > 1e-4


def test_masks_hide_the_asked_for_share_partly_in_blocks() -> None:
    masks = _random_masks(4000, (8, 8), draws())
    assert masks.shape == (4000, 64)
    assert 0.25 < masks.float().mean() < 0.40  # the middle of 15-60 %, less what overlaps
    assert torch.equal(masks, _random_masks(4000, (8, 8), draws()))
    grid = masks.view(-1, 8, 8)
    rights = grid[:, :, :-1] & grid[:, :, 1:]
    assert rights.float().mean() > 1.3 * grid.float().mean() ** 2  # neighbours hide together
    assert masks.float().mean(1).quantile(0.95) < 0.65
