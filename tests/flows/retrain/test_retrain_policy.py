"""When to train again: every rule, kept and broken, alone and together."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.retrain.retrain_policy import ClassFacts, Decision, Facts, Trigger, decide
from pvqae.core.config import Retrain

LIMITS = Retrain(min_new=20, max_age_days=30)
QUIET = ClassFacts("nut", champion="3", age_days=2.0, new_normals=0)


def decided(*classes: ClassFacts, limits: Retrain = LIMITS, **more: str) -> Decision:
    facts = Facts("schedule", "", "", classes or (QUIET,))
    return decide(replace(facts, **more), limits)  # type: ignore[arg-type]


def test_nothing_new_is_no_reason() -> None:
    found = decided()
    assert found.act == "wait"
    assert found.reasons == (
        "nut: 0 new normals since version 3, wanted 20",
        "nut: version 3 is 2.0 days old, limit 30",
    )


@pytest.mark.parametrize(("new", "train"), [(0, False), (19, False), (20, True), (500, True)])
def test_enough_new_normals_of_one_class(new: int, train: bool) -> None:
    found = decided(replace(QUIET, category="bolt"), replace(QUIET, new_normals=new))
    assert (found.act == "train") is (train)
    assert f"nut: {new} new normals since version 3" in "\n".join(found.reasons)
    assert found.trigger == ("samples" if train else "schedule")
    assert found.reason.startswith("nut: ") is train


def test_a_champion_dated_in_the_future_is_no_reason_and_is_told() -> None:
    found = decided(replace(QUIET, age_days=-3650.0, new_normals=1))
    assert found.act == "wait"
    assert any("3650.0 days in the future: a clock was wrong" in text for text in found.reasons)


@pytest.mark.parametrize(("age", "new", "train"), [(31.0, 1, True), (29.0, 1, False), (31.0, 0, False)])
def test_an_old_champion_learns_only_from_something_new(age: float, new: int, train: bool) -> None:
    found = decided(replace(QUIET, age_days=age, new_normals=new))
    assert (found.act == "train") is (train)
    assert (age > 30 and new == 0) == any("nothing new to learn" in line for line in found.reasons)


def test_drift_is_a_reason_if_there_is_something_to_learn_from_it() -> None:
    new = replace(QUIET, new_normals=1)
    found = decided(new, drift="brightness of nut")
    assert (found.act, found.trigger) == ("train", "drift")
    assert "brightness of nut" in found.reason
    assert decided(new, trigger="drift").act == "train"
    assert "put new normals into the landing area" in "\n".join(decided(trigger="drift").reasons)
    assert decided(trigger="drift").act == "wait"
    assert decided(new, drift="brightness", limits=LIMITS.model_copy(update={"on_drift": False})).act == "wait"


def test_an_explicit_request_needs_no_other_reason() -> None:
    found = decided(replace(QUIET, trained="4", judged=True), force="new lamp", trigger="manual")
    assert (found.act, found.trigger, found.reason) == ("train", "manual", "asked for: new lamp")


def test_a_class_without_a_champion_and_one_of_unknown_data_are_trained() -> None:
    assert "no champion yet" in decided(replace(QUIET, champion="", age_days=None, new_normals=None)).reason
    assert "not known" in decided(replace(QUIET, new_normals=None)).reason


def test_the_same_data_is_not_trained_twice_but_a_verdict_that_is_missing_is_asked_for() -> None:
    refused = replace(QUIET, new_normals=50, trained="4", judged=True)
    assert decided(refused).act == "wait"
    assert "already" in decided(refused).reason
    waiting = decided(refused, replace(refused, category="bolt", judged=False))
    assert waiting.act == "judge"
    assert "bolt version 4" in waiting.reason
    assert (
        decided(refused, replace(QUIET, category="bolt", new_normals=50)).act == "train"
    )  # bolt has no version of this data


def test_who_waits_for_review_is_said() -> None:
    assert "7 held back" in decided(replace(QUIET, in_review=7)).reasons[0]


def test_normals_that_nothing_learns_from_are_named_and_do_not_count() -> None:
    found = decided(replace(QUIET, new_normals=24, new_tests=8, new_gates=3))
    assert found.reason == "nut: 24 new normals since version 3, at least 20; 8 for the test split and 3 for the gate"
    assert decided(replace(QUIET, new_normals=19, new_tests=8)).act == "wait"
    assert "up to 24 new normals" in decided(replace(QUIET, new_normals=24, unseen=5)).reason


classes = st.builds(
    ClassFacts,
    category=st.sampled_from(["nut", "bolt", "pin"]),
    champion=st.sampled_from(["", "1", "2"]),
    age_days=st.none() | st.floats(0, 1000),
    new_normals=st.none() | st.integers(0, 1000),
    in_review=st.integers(0, 5),
    trained=st.sampled_from(["", "7"]),
    judged=st.booleans(),
)


@given(
    st.lists(classes, min_size=1, max_size=3),
    st.sampled_from(get_args(Trigger)),
    st.text(max_size=3),
    st.integers(1, 1000),
)
def test_every_decision_has_its_reason_and_more_samples_never_end_one(
    found: list[ClassFacts], trigger: str, drift: str, more: int
) -> None:
    facts = Facts(trigger, "", drift, tuple(found))  # type: ignore[arg-type]
    decision = decide(facts, LIMITS)
    assert decision.reason
    assert decision.trigger in get_args(Trigger)
    assert decision.act == "wait" or decision.reason in decision.reasons
    grown = tuple(replace(item, new_normals=(item.new_normals or 0) + more) for item in found)
    if decision.act == "train" and all(item.new_normals is not None for item in found):
        assert decide(replace(facts, classes=grown), LIMITS).act == "train"
