from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.prior import learn, prior
from pvqae.prior.prior import BudgetPrior, Expected

GRID = (6, 6)


def settings(steps: int) -> config.Params:
    return config.Params(prior=config.Prior(steps=steps, width=32))


def checkerboards(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits count x 2 x 6 x 6 of two phases: a cell alone is a coin, given the others it is certain."""
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    phase = torch.randint(2, (count, 1, 1), generator=torch.Generator().manual_seed(0))
    fine = ((rows + columns + phase) % 2).float()
    return 3 * torch.stack([1 - 2 * fine, 2 * fine - 1], 1), torch.ones(count, *GRID, dtype=torch.bool)


def test_the_prior_learns_what_no_table_of_frequencies_can_know() -> None:
    logits, valid = checkerboards(60)
    history: list[dict[str, object]] = []
    fitted = learn.fit(settings(config.Prior().steps), "full", logits[:40], valid[:40], history)
    own, table = learn.cross_entropies(fitted, (logits[:40], valid[:40]), (logits[40:], valid[40:]))
    assert table == pytest.approx(0.69, abs=0.05)
    assert own < 0.35
    assert [row["step"] for row in history] == list(range(config.Prior().steps))
    assert not any(p.requires_grad for p in fitted.parameters())


def test_the_frequency_table_is_smoothed_counts_of_the_seen_views() -> None:
    levels = torch.tensor([[0, 0], [0, 1], [0, 1]]).view(3, 1, 2)
    logits = torch.nn.functional.one_hot(levels, 2).movedim(-1, 1).float()
    valid = torch.ones(3, 1, 2, dtype=torch.bool)
    valid[2, 0, 0] = False  # padding is not counted
    seen, unseen = (logits, valid), (logits[:1], valid[:1])
    _, table = learn.cross_entropies(BudgetPrior((1, 2), 2, 8).eval(), seen, unseen)
    expected = -(torch.tensor(3 / 4).log() + torch.tensor(2 / 5).log()) / 2
    assert table == pytest.approx(expected.item())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_few_steps_repeat_themselves_exactly(steps: int) -> None:
    logits, valid = checkerboards(5)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        weights.append(learn.fit(settings(steps), "full", logits, valid, []).state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_padding_is_neither_learned_nor_a_source() -> None:
    logits, valid = checkerboards(8)
    valid[:, :, 4:] = False
    garbage = torch.where(valid[:, None], logits, torch.full_like(logits, 4.0))
    one, other = (learn.fit(settings(3), "full", x, valid, []).state_dict() for x in (logits, garbage))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_loss_is_least_for_the_true_expectation() -> None:
    logits = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(2, 9, dtype=torch.bool)
    right = Expected(logits, logits, torch.full_like(logits, -6))
    wrong = Expected(-logits, -logits, torch.full_like(logits, -6))
    assert learn._loss(right, logits, counted) < learn._loss(wrong, logits, counted)
    only_right = counted.clone()
    only_right[:, 3:] = False
    mixed = Expected(*(torch.cat([r[:, :3], w[:, 3:]], 1) for r, w in zip(right, wrong, strict=True)))
    assert learn._loss(mixed, logits, only_right).item() == pytest.approx(
        learn._loss(Expected(*(x[:, :3] for x in right)), logits[:, :3], counted[:, :3]).item()
    )


def sides(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two kinds of normals that no label tells apart: fine on the left, or on the right."""
    fine = torch.zeros(count, *GRID)
    fine[: count // 2, :, :3] = 1
    fine[count // 2 :, :, 3:] = 1
    noise = 0.1 * torch.randn(count, 2, *GRID, generator=torch.Generator().manual_seed(0))
    return 3 * torch.stack([1 - 2 * fine, 2 * fine - 1], 1) + noise, torch.ones(count, *GRID, dtype=torch.bool)


def clustered(steps: int) -> config.Params:
    return config.Params(prior=config.Prior(grouping="clustered", clusters=2, steps=steps, width=32))


def test_clustered_priors_learn_one_kind_of_normals_each() -> None:
    logits, valid = sides(40)
    history: list[dict[str, object]] = []
    found = learn.fit_group(clustered(3), "full", logits, valid, history)
    assert isinstance(found, prior.Clustered)
    chosen = found.assign(logits, valid).tolist()
    assert chosen == [chosen[0]] * 20 + [1 - chosen[0]] * 20
    assert [(row["phase"], row["step"]) for row in history] == [(f"prior-{c}", s) for c in (0, 1) for s in range(3)]
    for cluster, first in ((chosen[0], 0), (1 - chosen[0], 20)):
        mean = found.members[cluster].base[:, 2:4].T.reshape(2, *GRID)  # of the logits that it began with
        assert torch.allclose(mean, logits[first : first + 20].mean(0), atol=0.2)


def test_a_clustered_fit_repeats_itself_exactly() -> None:
    logits, valid = sides(40)
    one, other = (learn.fit_group(clustered(2), "full", logits, valid, []).state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def network(folder: Path, rows: list[tuple[str, int]], fits: list[str], start: float) -> None:
    """A network's folder: one view per row, whose logits tell the row and the fit."""
    folder.mkdir(parents=True)
    facts = [(f"s{i}", category, f"g{i}", "train", fold) for i, (category, fold) in enumerate(rows)]
    columns = ["sample_id", "category", "group_id", "split", "fold"]
    pd.DataFrame(facts, columns=columns).to_csv(folder / "rows.csv", index=False)
    base = (start + torch.arange(len(rows)).float()).view(-1, 1, 1, 1).expand(-1, 2, 2, 2)
    tensors = {f"logits.{fit}": (base + 100 * number).half().contiguous() for number, fit in enumerate(fits)}
    valid = torch.ones(len(rows), 2, 2, dtype=torch.bool)
    save_file(tensors | {"rows": torch.arange(len(rows)), "valid": valid}, folder / "allocations.safetensors")


def test_one_network_gives_the_views_of_the_named_classes(tmp_path: Path) -> None:
    network(tmp_path / "all", [("a", 0), ("b", 1), ("a", 1)], ["full", "fold-0", "fold-1"], start=0)
    found = learn._read(tmp_path / "all", ["a"])
    assert list(found.rows["sample_id"]) == ["s0", "s2"]
    assert found.row_of_view.tolist() == [0, 1]
    assert found.logits["full"][:, 0, 0, 0].tolist() == [0, 2]
    assert found.logits["fold-1"][:, 0, 0, 0].tolist() == [200, 202]
    assert found.views(found.rows["fold"].to_numpy() == 1).tolist() == [False, True]


def test_all_networks_below_a_folder_are_joined_and_one_without_folds_is_the_same_in_each(tmp_path: Path) -> None:
    network(tmp_path / "a", [("a", -1), ("a", -1)], ["full"], start=0)
    network(tmp_path / "b", [("b", 0), ("b", 1)], ["full", "fold-0", "fold-1"], start=10)
    found = learn._read(tmp_path, ["a", "b"])
    assert list(found.rows["category"]) == ["a", "a", "b", "b"]
    assert found.row_of_view.tolist() == [0, 1, 2, 3]
    assert found.logits["full"][:, 0, 0, 0].tolist() == [0, 1, 10, 11]
    assert found.logits["fold-0"][:, 0, 0, 0].tolist() == [0, 1, 110, 111]


def test_no_allocations_is_an_error_that_names_the_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"allocations of a, b"):
        learn._read(tmp_path, ["a", "b"])


@pytest.mark.parametrize("cells", [1, 36 * 3, 36 * 7])
def test_many_views_are_expected_a_few_at_a_time(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, valid = checkerboards(20)
    valid[3, :, 4:] = False
    torch.manual_seed(0)
    learned = BudgetPrior(GRID, 2, 16).eval()
    every = learn.cross_entropies(learned, (logits, valid), (logits, valid))
    monkeypatch.setattr(learn, "_CELLS", cells)
    assert learn.cross_entropies(learned, (logits, valid), (logits, valid)) == pytest.approx(every, abs=1e-5)
