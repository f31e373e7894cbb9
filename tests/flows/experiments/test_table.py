"""From runs to rows, verdicts and pages, with numbers whose answer is known."""

from pathlib import Path

import pytest

from flows.experiments import page
from flows.experiments.catalogue import Experiment, FinishedRun, PlannedRun
from flows.experiments.page import MEAN, _Cell, _TableRow, rows
from pvqae.core import config


def done(variant: str, category: str, seed: int, figures: dict[str, float | None], row: str = "") -> FinishedRun:
    return FinishedRun(PlannedRun(variant, category, config.Params(seed=seed)), {row: figures}, 60.0, kept=False)


@pytest.fixture
def runs() -> list[FinishedRun]:
    return [
        done("a", "x", 0, {"image_auroc": 0.8, "pixel_auroc": None}),
        done("a", "x", 1, {"image_auroc": 0.9, "pixel_auroc": 0.5}),
        done("a", "y", 0, {"image_auroc": 0.6}),
        done("a", "y", 1, {"image_auroc": 0.5}),
    ]


def test_rows_are_means_and_deviations_over_seeds_and_a_mean_over_classes(runs: list[FinishedRun]) -> None:
    x, y, mean = rows(runs)
    assert (x.category, y.category, mean.category) == ("x", "y", MEAN)
    assert x.cells["image_auroc"].mean == pytest.approx(0.85)
    assert x.cells["image_auroc"].spread == pytest.approx(0.0707, abs=1e-4)
    # Per seed first: the classes' ups and downs cancel here, so the mean's spread is none.
    assert mean.cells["image_auroc"] == _Cell(pytest.approx(0.7), pytest.approx(0.0), 2)  # type: ignore[arg-type]


def test_a_figure_that_is_not_there_leaves_a_gap_and_is_no_zero(runs: list[FinishedRun]) -> None:
    x, _, mean = rows(runs)
    assert x.cells["pixel_auroc"] == _Cell(0.5, 0.0, 1)
    assert "pixel_auroc" not in mean.cells
    assert page._table(rows(runs), ("pixel_auroc",))[-1] == "| a | mean |  |"


def test_rows_of_their_own_take_the_place_of_the_variant() -> None:
    found = rows([done("a", "x", 0, {"image_auroc": 1.0}, "blur 0.1")])
    assert [row.label for row in found] == ["blur 0.1"]


def cells(**values: tuple[float, float]) -> dict[str, _Cell]:
    return {key: _Cell(mean, spread, 3) for key, (mean, spread) in values.items()}


def budgets(expected: tuple[float, float]) -> list[_TableRow]:
    others = dict.fromkeys(page._CONSTANTS, (0.9, 0.01))
    tests = cells(spearman=(0.4, 0), least_share=(0.1, 0), shuffled_raise=(0.02, 0))
    found = [_TableRow("shipped params", "x", tests)]
    return found + [_TableRow(k, "x", cells(image_auroc=v)) for k, v in {**others, "budget expected": expected}.items()]


@pytest.mark.parametrize(("expected", "word"), [((0.95, 0.01), "yes"), ((0.905, 0.01), "**no**")])
def test_a_budget_is_better_only_beyond_the_spread(expected: tuple[float, float], word: str) -> None:
    (line,) = page._mechanism(budgets(expected))
    assert f"beyond spread: {word}" in line
    assert "all in use: yes" in line
    assert "shuffling costs 5 %: **no**" in line


@pytest.mark.parametrize(("auroc", "word"), [(0.96, ", within"), (0.95, "NOT within")])
def test_the_baseline_says_whether_it_is_within_two_points(auroc: float, word: str) -> None:
    table = [
        _TableRow("s", "bottle", cells(image_auroc=(auroc, 0))),
        _TableRow("s", "magnetic_tile", cells(image_auroc=(0.1, 0))),
    ]
    (line,) = page._baseline(table)
    assert word in line


EXPERIMENT = Experiment(
    question="Is a better?",
    variants={"a": {}},
    classes=("x", "y"),
    figures=("image_auroc",),
    plot="image_auroc",
    note="Mind the gap.",
)


def test_a_page_has_question_command_table_plot_and_a_place_for_the_answer(
    runs: list[FinishedRun], tmp_path: Path
) -> None:
    text = page.write("lambda", EXPERIMENT, runs, tmp_path, tmp_path / "none").read_text("utf-8")
    for part in (EXPERIMENT.question, "python -m flows experiment lambda", "x, y", "Mind the gap.", "lambda.svg"):
        assert part in text
    assert "| a | x | 0.850 ± 0.071 |" in text
    assert "answers/lambda.md" in text


def test_an_answer_that_a_person_wrote_is_shown_and_never_changed(runs: list[FinishedRun], tmp_path: Path) -> None:
    answer = tmp_path / "answers" / "lambda.md"
    answer.parent.mkdir()
    answer.write_text("No. It is not.\n", "utf-8")
    text = page.write("lambda", EXPERIMENT, runs, tmp_path, tmp_path / "none").read_text("utf-8")
    assert text.endswith("## Answer\n\nNo. It is not.\n")
    assert answer.read_text("utf-8") == "No. It is not.\n"


def test_the_same_numbers_give_the_same_bytes(runs: list[FinishedRun], tmp_path: Path) -> None:
    first, second = (page.write("l", EXPERIMENT, runs, tmp_path / n, tmp_path / "none") for n in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".svg").read_bytes() == second.with_suffix(".svg").read_bytes()
