"""Every rule, kept and broken; and what the states of all rules come to."""

from dataclasses import replace
from typing import Any

import pytest

from flows.gate.power import _NOTHING_WRONG
from flows.gate.rules import RULES, Measured, judge
from flows.gate.statistics import Alarms, Comparison
from flows.versions import policy
from pvqae.calibration import thresholds
from pvqae.core.config import Gate

LIMITS = Gate()
SAME = Comparison(0.9, 0.9, -0.004, 0.004, 0.003, 60, 180)
SOUND = replace(
    _NOTHING_WRONG,
    groups=60,
    normals=60,
    defects=180,
    auroc=SAME,
    own_auroc=0.9,
    aupro=SAME,
    own_aupro=0.9,
    kinds={"scratch": SAME},
    alarms=Alarms(0.05, 60, 60, 0.01),
    promised=0.1,
)
UNSURE = Comparison(0.9, 0.895, -0.03, 0.02, 0.02, 60, 180)

BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("lineage", {"flaws": ("is marked never promotable",)}, "never promotable"),
    ("image_auroc", {"auroc": Comparison(0.9, 0.87, -0.05, -0.01, 0.01, 60, 180)}, "-0.0300"),
    ("aupro", {"aupro": Comparison(0.9, 0.86, -0.06, -0.01, 0.01, 60, 180)}, "0.8600 against 0.9000 on 180 masked"),
    ("worst_kind", {"kinds": {"a": SAME, "b": Comparison(0.9, 0.8, -0.15, -0.05, 0.04, 60, 60)}}, "b: image AUROC"),
    ("finds", {"tried": (24, 0)}, "0 of 24 above its threshold"),
    ("false_alarms", {"alarms": Alarms(0.4, 60, 60, 0.3)}, "40.0% of 60"),
    ("parity", {"parity": 2e-4}, "0.0002"),
    ("parity", {"parity": None}, "no score could be compared"),
    ("parity", {"parity": float("nan")}, "nan"),
    ("level_shares", {"level_shares": (0.99, 0.01)}, "99.0%"),
    ("codebook_usage", {"codebook_usage": 0.01}, "1.0%"),
    ("latency", {"latency_ms": (10.0, 16.0)}, "ratio 1.60"),
    ("size", {"size_bytes": (10_000_000, 16_000_000)}, "ratio 1.60"),
]
UNDECIDED: list[tuple[str, dict[str, Any], str]] = [
    ("gate_images", {"groups": 19}, "at least 20 parts are needed"),
    ("gate_images", {"defects": 0}, "0 defects"),
    ("image_auroc", {"auroc": UNSURE}, "parts would decide it, there are 60"),
    ("image_auroc", {"auroc": None}, "needs normals and defects"),
    ("aupro", {"aupro": Comparison(0.9, 0.87, -0.09, 0.01, 0.04, 60, 180)}, "it may be chance"),
    ("false_alarms", {"alarms": None}, "needs normals"),
]


def state(rule: str, found: Measured) -> str:
    return RULES[rule](found, LIMITS).state


def test_a_sound_challenger_passes_with_a_line_per_rule() -> None:
    verdict = judge(SOUND, LIMITS)
    assert verdict.outcome == "pass"
    assert len(verdict.lines) == len(RULES)
    assert all(line.startswith("kept: ") for line in verdict.lines)
    assert verdict.promotable(LIMITS)


@pytest.mark.parametrize(("rule", "changed", "said"), BROKEN)
def test_one_broken_rule_refuses_and_says_its_figures(rule: str, changed: dict[str, Any], said: str) -> None:
    found = replace(SOUND, **changed)
    assert state(rule, found) == "broken"
    verdict = judge(found, LIMITS)
    assert verdict.outcome == "refused"
    assert not verdict.promotable(Gate(insufficient_promotes=True))
    (line,) = [line for line in verdict.lines if line.startswith("broken: ")]
    assert said in line


@pytest.mark.parametrize(("rule", "changed", "said"), UNDECIDED)
def test_too_little_to_tell_promotes_only_where_the_params_say_so(
    rule: str, changed: dict[str, Any], said: str
) -> None:
    found = replace(SOUND, **changed)
    assert state(rule, found) == "undecided"
    verdict = judge(found, LIMITS)
    assert verdict.outcome == "insufficient"
    assert said in " ".join(verdict.lines)
    assert not verdict.promotable(LIMITS)
    assert verdict.promotable(Gate(insufficient_promotes=True))


def test_the_number_of_parts_that_would_decide_follows_the_spread() -> None:
    """Equal models of standard error s pass in 95 % when 1.28 s + 1.64 s is the margin."""
    wide = replace(UNSURE, error=0.04)
    texts = [RULES["image_auroc"](replace(SOUND, auroc=seen), LIMITS).text for seen in (UNSURE, wide)]
    first, second = (int(text.partition("about ")[2].split()[0]) for text in texts)
    assert first == pytest.approx(60 * (2.926 * 0.02 / 0.01) ** 2, rel=0.01)
    assert second == pytest.approx(4 * first, rel=0.01)


def test_a_lost_kind_counts_only_when_chance_does_not_explain_it() -> None:
    by_chance = Comparison(0.9, 0.8, -0.25, 0.05, 0.1, 60, 60)
    assert state("worst_kind", replace(SOUND, kinds={"a": by_chance})) == "kept"
    few = Comparison(0.9, 0.5, -0.5, -0.3, 0.1, 60, LIMITS.min_kind - 1)
    assert state("worst_kind", replace(SOUND, kinds={"a": few})) == "kept"


def test_aupro_may_fall_within_its_margin_and_is_kept_where_nothing_can_be_measured() -> None:
    within = Comparison(0.9, 0.885, -0.03, -0.005, 0.01, 60, 180)  # surely worse, by less than the margin
    assert state("aupro", replace(SOUND, aupro=within)) == "kept"
    loose = Gate(aupro_margin=0.05)
    lost = replace(SOUND, aupro=Comparison(0.9, 0.86, -0.06, -0.01, 0.01, 60, 180))
    assert RULES["aupro"](lost, loose).state == "kept"
    unmasked = RULES["aupro"](replace(SOUND, aupro=None, own_aupro=None), LIMITS)
    assert (unmasked.state, unmasked.text) == ("kept", "not measured: no defect at the gate has a mask")
    assert RULES["aupro"](replace(SOUND, aupro=None), LIMITS).text == "0.9000, no champion to compare with"


def test_a_first_champion_needs_the_absolute_rules_only() -> None:
    first = replace(SOUND, auroc=None, kinds={}, latency_ms=None, size_bytes=None)
    assert judge(first, LIMITS).outcome == "pass"
    assert judge(replace(first, own_auroc=0.5), LIMITS).outcome == "refused"
    assert judge(replace(first, own_auroc=None), LIMITS).outcome == "insufficient"
    assert judge(replace(first, codebook_usage=0.0), LIMITS).outcome == "refused"


def test_limits_of_collapse_are_those_that_training_warns_by() -> None:
    assert (LIMITS.level_share, LIMITS.codebook_usage) == (thresholds.LEVEL_LIMIT, thresholds.USAGE_LIMIT)


def test_a_first_version_must_tell_defects_from_normals() -> None:
    facts = policy.Facts(0.0, (), (), (0.5, 0.5), 0.5, image_auroc=0.5)
    assert policy.decide(facts, later=False).alias == "challenger"
    assert policy.decide(replace(facts, image_auroc=0.8), later=False).alias == "champion"
    assert policy.decide(replace(facts, image_auroc=None), later=False).alias == "champion"
    assert policy.decide(replace(facts, image_auroc=0.8), first_auroc=0.9, later=False).alias == "challenger"


def test_a_challenger_that_promises_no_rate_leaves_its_false_alarms_undecided() -> None:
    verdict = judge(replace(SOUND, promised=None), LIMITS)
    assert verdict.outcome == "insufficient"
    assert "too few good images to promise a rate" in "\n".join(verdict.lines)


def test_a_version_that_promises_no_rate_may_be_the_first_champion_and_says_so() -> None:
    facts = policy.Facts(0.0, (), (), (0.5, 0.5), 0.5, no_promise="promises no false-alarm rate")
    first = policy.decide(facts, later=False)
    assert (first.alias, first.reasons[-1]) == ("champion", facts.no_promise)
    assert policy.decide(facts, later=True).reasons[-1] == facts.no_promise
