"""A pinned champion stays whatever passes the gate, until the pin is taken out."""

import getpass
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flows.adapters.fakes import FakeRegistry
from flows.core import lineage
from flows.core.lineage import Owner
from flows.gate import promote
from flows.gate.measure import Findings
from flows.gate.promote import VerdictRequest
from flows.gate.rules import Verdict
from flows.versions import notes, promotions
from flows.versions.promotions import PromotionError
from pvqae.core.config import Gate
from tests.flows.gate.test_gate_rules import SOUND
from tests.flows.gate.test_promote import bundle, sound

MODEL, OWNER = "pvqae-x-part", Owner("x", "part")
LIMITS, STRICT = Gate(), Gate(approval=True)
ASKED = VerdictRequest("samples", "40 new images")


KINDS = {"champion": "initial", "challenger": "challenger"}


@pytest.fixture
def two(twin: FakeRegistry, tmp_path: Path) -> FakeRegistry:
    """A champion and a challenger that passes."""
    for number, alias in enumerate(promotions.ALIASES):
        sha256 = bundle(tmp_path / str(number), str(number))
        run = twin.start("pvqae-x", "part")
        tags = dict.fromkeys(lineage.REQUIRED, "known") | {"bundle_sha256": sha256, "mlflow_run": run}
        version = twin.register(MODEL, run, twin.log_model(run, tmp_path / str(number)), tags, OWNER)
        promotions.move(twin, MODEL, alias, version, kind=KINDS[alias], reasons=("first",))
    return twin


def judge(registry: FakeRegistry, root: Path, asked: VerdictRequest = ASKED, limits: Gate = LIMITS) -> Verdict:
    found = Findings(SOUND, pd.DataFrame({"sample_id": ["a"]}), "list")
    return promote.decide(registry, root, "x", "part", lambda pair: found, limits, asked, loads=sound)


def test_a_pass_waits_while_the_champion_is_pinned(two: FakeRegistry, tmp_path: Path) -> None:
    notes.pin(two, tmp_path, OWNER, "audit")
    verdict = judge(two, tmp_path)
    assert (verdict.outcome, verdict.promoted) == ("pass", False)
    assert verdict.lines[0].startswith("nothing moved: the champion is pinned, version 1, ")
    assert "audit" in verdict.lines[0]
    assert promotions.held(two, MODEL) == "1"
    with pytest.raises(PromotionError, match=f"promote unpin {MODEL}"):
        judge(two, tmp_path, replace(ASKED, override="please"))
    assert "audit" in notes.unpin(two, tmp_path, OWNER)
    assert judge(two, tmp_path).promoted
    assert promotions.held(two, MODEL) == "2"


def test_a_pass_waits_for_a_second_person_where_the_gate_asks_for_one(
    two: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = judge(two, tmp_path, limits=STRICT)
    assert (verdict.outcome, verdict.promoted) == ("pass", False)
    assert f"promote approve {MODEL} --version 2" in verdict.lines[0]
    assert not judge(two, tmp_path, replace(ASKED, override="please"), STRICT).promoted
    with pytest.raises(PromotionError, match="expected the approval of a second person, found"):
        notes.approve(two, tmp_path, OWNER, "", "mine")  # who had it trained
    monkeypatch.setattr(getpass, "getuser", lambda: "berta")
    with pytest.raises(PromotionError, match="needs a reason"):
        notes.approve(two, tmp_path, OWNER, "", " ")
    with pytest.raises(PromotionError, match="no version 9"):
        notes.approve(two, tmp_path, OWNER, "9", "why")
    assert "by berta: looked at it" in notes.approve(two, tmp_path, OWNER, "", "looked at it")
    assert judge(two, tmp_path, limits=STRICT).promoted
    assert any("by berta: looked at it" in reason for reason in two.promotions(MODEL)[-1].reasons)


def test_a_pin_needs_a_reason_and_a_champion(twin: FakeRegistry, tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match="needs a reason"):
        notes.pin(twin, tmp_path, OWNER, "")
    with pytest.raises(PromotionError, match="no champion to pin"):
        notes.pin(twin, tmp_path, OWNER, "why")
    assert notes.unpin(twin, tmp_path, OWNER) == ""
