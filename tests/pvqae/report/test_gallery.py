"""The gallery keeps the extremes, each image once, and draws only what it keeps at that moment."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pvqae.report.gallery import _GROUPS as GROUPS
from pvqae.report.gallery import Gallery


def _row(number: int, label: str, score: float) -> dict[str, object]:
    return {"sample_id": f"s{number:03d}", "label": label, "image_score": score}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["normal", "defect"]), st.integers(0, 9)), max_size=40), st.integers(1, 4))
def test_groups_hold_the_extremes_of_their_label(images: list[tuple[str, int]], size: int) -> None:
    gallery = Gallery(size)
    rows = [_row(number, label, score) for number, (label, score) in enumerate(images)]
    for row in rows:
        gallery.offer(row, dict)
    chosen = gallery.chosen()
    samples = [picture.row["sample_id"] for _, picture in chosen]
    assert len(samples) == len(set(samples))
    for first in ("normal_high", "defect_low"):  # the first group of a label is complete
        label, sign = GROUPS[first]
        expected = sorted((row["image_score"] for row in rows if row["label"] == label), reverse=sign > 0)[:size]
        assert [picture.row["image_score"] for group, picture in chosen if group == first] == expected


def test_the_choice_does_not_depend_on_the_order() -> None:
    rows = [_row(number, "normal", number % 3) for number in range(12)]
    choices = []
    for order in (rows, rows[::-1]):
        gallery = Gallery(2)
        for row in order:
            gallery.offer(row, dict)
        choices.append([(group, picture.row["sample_id"]) for group, picture in gallery.chosen()])
    assert choices[0] == choices[1]


def test_few_images_are_drawn() -> None:
    drawn, gallery = [], Gallery(3)
    scores = np.random.default_rng(0).normal(size=1000)
    for number, score in enumerate(scores):
        gallery.offer(_row(number, "normal", score), lambda number=number: drawn.append(number) or {})
    assert len(gallery.chosen()) == 6
    assert len(drawn) < 100


def test_size_zero_draws_nothing() -> None:
    gallery = Gallery(0)
    gallery.offer(_row(0, "defect", 1.0), lambda: 1 / 0)
    assert gallery.chosen() == []
