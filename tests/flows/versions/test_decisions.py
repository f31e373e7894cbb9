"""Policy and lineage: facts in, a decision with its reasons out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.core import lineage
from flows.versions import policy

GOOD = policy.Facts(0.0, (), (), (0.2, 0.3, 0.5), 0.6)
LINEAGE = lineage.Lineage(**dict.fromkeys(lineage.REQUIRED, "x"))


def test_a_sound_first_version_becomes_champion() -> None:
    assert policy.decide(GOOD, later=False).alias == "champion"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"parity_difference": 2e-4}, "0.0002"),
        ({"parity_difference": float("nan")}, "nan"),
        ({"parity_difference": None}, "not established"),
        ({"missing_lineage": ("git_sha",)}, "git_sha"),
        ({"uncommitted": ("pvqae/a.py",)}, "pvqae/a.py"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_breaks_an_absolute_rule_is_not_registered_and_said(
    later: bool, broken: dict[str, object], said: str
) -> None:
    decision = policy.decide(replace(GOOD, **broken), later=later)  # type: ignore[arg-type]
    assert decision.alias is None
    assert said in " ".join(decision.reasons)


@pytest.mark.parametrize("broken", [{"level_shares": (0.99, 0.01)}, {"codebook_usage": 0.04}])
def test_a_collapsed_first_version_is_registered_but_no_champion(broken: dict[str, object]) -> None:
    decision = policy.decide(replace(GOOD, **broken), later=False)  # type: ignore[arg-type]
    assert decision.alias == "challenger"
    assert decision.reasons


@pytest.mark.parametrize(("tried", "alias"), [((24, 0), "challenger"), ((1, 0), "challenger"), ((24, 1), "champion")])
@pytest.mark.parametrize("auroc", [1.0, 0.7, None])
def test_a_threshold_above_all_its_own_defects_is_no_champion(
    tried: tuple[int, int], alias: str, auroc: float | None
) -> None:
    decision = policy.decide(replace(GOOD, tried=tried, image_auroc=auroc), later=False)
    assert decision.alias == alias
    assert (f"none of its own {tried[0]} synthetic defects" in " ".join(decision.reasons)) == (alias == "challenger")


@pytest.mark.parametrize("card", [{}, {"synthetic": {"n": 0, "found": 0, "highest": None}}])
def test_what_was_not_tried_is_no_reason_against_a_champion(card: dict[str, object]) -> None:
    assert policy.decide(replace(GOOD, tried=policy.tried_of(card)), later=False).alias == "champion"


def test_a_single_level_cannot_collapse() -> None:
    assert policy.decide(replace(GOOD, level_shares=(1.0,)), later=False).alias == "champion"


def test_beside_a_champion_a_version_waits_for_the_gate() -> None:
    assert policy.decide(GOOD, later=True).alias == "challenger"


@given(st.sampled_from(lineage.REQUIRED), st.sampled_from(["", "  ", None]))
def test_every_absent_or_empty_tag_is_missed(name: str, value: str | None) -> None:
    tags = LINEAGE.tags()
    assert lineage.Lineage.missing(tags) == ()
    if value is None:
        del tags[name]
    else:
        tags[name] = value
    assert lineage.Lineage.missing(tags) == (name,)


def test_no_parent_is_a_fact_not_a_fault() -> None:
    assert lineage.Lineage.missing(replace(LINEAGE, parent_version=lineage.NONE).tags()) == ()
