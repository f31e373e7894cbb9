"""The versions on a report's page: whom each is compared with, and that a moved alias shows."""

import json
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeRegistry
from flows.adapters.tracking import Promotion
from flows.core import lineage
from flows.versions import promotions, report_page
from flows.versions.registration import Registered

MODEL = "pvqae-x-part"
METRICS = {"image_auroc": 0.9, "latency_ms": 5.0}


def _champion(to: str, kind: str = "gate", before: str = "none") -> Promotion:
    return Promotion("2026-01-01T00:00:00", "me", "champion", before, to, kind, ("r",), "run")


@pytest.mark.parametrize(
    ("version", "tags", "champion", "expected"),
    [
        ("1", {}, "1", ("", "")),
        ("3", {}, "2", ("2", "champion")),
        ("", {}, "2", ("2", "champion")),
        ("2", {}, "2", ("1", "champion before it")),
        ("2", {"gate_champion": "1"}, "2", ("1", "champion at the gate")),
        ("3", {"gate_champion": "2"}, "2", ("2", "champion")),
        ("1", {"gate_champion": "none"}, None, ("", "")),
    ],
)
def test_a_version_is_compared_with_whom_the_gate_judged_it_by_or_the_champion(
    version: str, tags: dict[str, str], champion: str | None, expected: tuple[str, str]
) -> None:
    log = [_champion("1", "initial")] + ([_champion("2", before="1")] if champion == "2" else [])
    assert report_page._opponent(version, tags, champion, log) == expected


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "reports" / "x"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"classes": {"part": METRICS}}))
    monkeypatch.setattr("pvqae.report.report._rewrite_page", lambda reports, demo: None)
    return folder


def _add(runs: FakeRegistry, alias: str, **figures: float) -> str:
    tags = dict.fromkeys(lineage.REQUIRED, "known") | lineage.figures(METRICS | figures, 7)
    version = runs.register(MODEL, "run", "model", tags | {"decided_alias": alias, "decided_reasons": "a\nb"})
    promotions.move(runs, MODEL, alias, version, kind="initial", reasons=("r",))
    return version


def _shown(reports: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((reports / "versions.json").read_text())["classes"]["part"]
    return content


def test_lineage_and_figures_come_from_the_registry(reports: Path) -> None:
    runs = FakeRegistry()
    _add(runs, "champion")
    found = Registered("part", _add(runs, "challenger", image_auroc=0.95), True, "challenger", ())
    report_page.publish(runs, reports, "x", [found], demo=False)
    shown = _shown(reports)
    assert (shown["number"], shown["alias"], shown["reasons"]) == ("2", "challenger", ["a", "b"])
    assert len(shown["lineage"]) == len(lineage.REQUIRED)
    comparison = shown["comparison"]
    assert (comparison["other"], comparison["same_images"]) == ("1", True)
    assert comparison["this_figures"]["image_auroc"] == 0.95
    assert comparison["other_figures"]["size_bytes"] == 7


@pytest.mark.parametrize(
    ("tags", "shown"),
    [
        ({}, {"bundle given to start from": "ab"}),  # of a release that kept no more
        ({"started_from": "parent"}, {"bundle given to start from": "ab", "training started from": "that bundle"}),
        ({"started_from": "scratch: a part is gone"}, {"training started from": "scratch: a part is gone"}),
    ],
)
def test_a_bundle_that_was_not_trained_on_from_is_not_named(tags: dict[str, str], shown: dict[str, str]) -> None:
    found = report_page._facts({"parent_bundle_sha256": "ab", **tags})
    assert {fact.name: fact.value for fact in found} == shown


def test_what_the_data_check_warned_of_stays_on_the_page(reports: Path) -> None:
    runs = FakeRegistry()
    found = Registered("part", _add(runs, "champion"), True, "champion", ())
    report_page.publish(runs, reports, "x", [found], demo=False, notes=("3 files were left out",))
    report_page.refresh(runs, reports.parents[1], "x")
    assert json.loads((reports / "versions.json").read_text())["notes"] == ["3 files were left out"]


def test_an_unregistered_bundle_is_compared_by_its_report(reports: Path) -> None:
    runs = FakeRegistry()
    _add(runs, "champion")
    report_page.publish(runs, reports, "x", [Registered("part", "", False, "", ("code differs",))], demo=False)
    shown = _shown(reports)
    assert (shown["number"], shown["reasons"], shown["lineage"]) == ("", ["code differs"], [])
    assert shown["comparison"]["this_figures"]["image_auroc"] == 0.9
    assert shown["comparison"]["same_images"] is False


def test_a_moved_alias_and_a_verdict_show_after_a_refresh(reports: Path) -> None:
    runs = FakeRegistry()
    _add(runs, "champion")
    second = _add(runs, "challenger")
    report_page.publish(runs, reports, "x", [Registered("part", second, True, "challenger", ())], demo=False)
    runs.tag_version(MODEL, second, {"gate_outcome": "pass", "gate_champion": "1", "gate_verdict": "kept: a: b"})
    promotions.move(runs, MODEL, "champion", second, kind="gate", reasons=("r",))
    report_page.refresh(runs, reports.parents[1], "x")
    shown = _shown(reports)
    assert shown["alias"] == "champion"
    assert shown["verdict"] == {"outcome": "pass", "against": "1", "lines": ["kept: a: b"]}
    assert shown["comparison"]["role"] == "champion at the gate"


def test_a_refresh_of_one_class_asks_about_no_other(reports: Path) -> None:
    runs = FakeRegistry()
    found = Registered("part", _add(runs, "champion"), True, "champion", ())
    report_page.publish(runs, reports, "x", [found], demo=False)
    before = _shown(reports)
    runs.tag_version(MODEL, "1", {"gate_outcome": "pass", "gate_champion": "1", "gate_verdict": "kept: a: b"})
    report_page.refresh(runs, reports.parents[1], "x", "other")
    assert _shown(reports) == before
    report_page.refresh(runs, reports.parents[1], "x", "part")
    assert _shown(reports)["verdict"]


def test_a_refresh_without_a_page_does_nothing(tmp_path: Path) -> None:
    report_page.refresh(FakeRegistry(), tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
