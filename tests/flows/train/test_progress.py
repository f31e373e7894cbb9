"""Rows of a stage become curves: each once, live, half-written lines later."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flows.adapters.tracking import Metric, as_metrics
from flows.train.recording import _curves, _Tail
from tests.waiting import until


def line(step: int, loss: float) -> str:
    return json.dumps({"phase": "vq", "fold": None, "step": step, "loss": loss}) + "\n"


def test_each_number_of_a_row_is_a_point_and_folds_are_apart() -> None:
    rows = [
        {"phase": "vq", "fold": None, "step": 3, "loss": 0.5, "usage": None, "note": "x"},
        {"fold": "full", "step": 3, "loss": 0.6},
        {"phase": "vq", "fold": "fold-1", "step": 3, "loss": 0.7},
    ]
    assert _curves(rows) == [Metric("vq/loss", 0.5, 3), Metric("train/loss", 0.6, 3), Metric("vq/fold-1/loss", 0.7, 3)]


def test_a_row_is_handed_on_once_whatever_file_it_stands_in(tmp_path: Path) -> None:
    taken: list[Metric] = []
    tail = _Tail(taken.extend)
    live, history = tmp_path / "progress.jsonl", tmp_path / "history.jsonl"
    live.write_text(line(1, 0.9) + line(2, 0.8)[:-9])  # the second is still being written
    tail.take(live)
    history.write_text(line(1, 0.9) + line(2, 0.8))
    tail.take(history)
    assert [(metric.step, metric.value) for metric in taken] == [(1, 0.9), (2, 0.8)]


def test_rows_arrive_while_the_stage_runs_but_not_those_of_another_one(tmp_path: Path) -> None:
    taken: list[Metric] = []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "progress.jsonl").write_text(line(7, 0.1))
    with _Tail(taken.extend).following(tmp_path, "*/progress.jsonl"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "progress.jsonl").write_text(line(1, 0.9))
        until(lambda: bool(taken))
    assert [metric.step for metric in taken] == [1]


@given(st.dictionaries(st.text(min_size=1), st.none() | st.booleans() | st.text() | st.floats(allow_nan=False)))
def test_only_numbers_get_through_under_names_that_mlflow_takes(figures: dict[str, object]) -> None:
    flat = {item.key: item.value for item in as_metrics(figures)}
    assert len(flat) <= sum(isinstance(value, float) for value in figures.values())
    assert all(character.isalnum() or character in "_.- " for key in flat for character in key)


def test_nested_figures_get_dotted_names() -> None:
    found = as_metrics({"kinds": {"a/b": {"n": 3}}, "shares": [0.5, None]})
    assert found == [Metric("kinds.a_b.n", 3.0), Metric("shares.0", 0.5)]
