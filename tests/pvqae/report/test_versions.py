"""Lineage and comparison on the page: shown for the figures they belong to, escaped, never for others."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.report import page
from pvqae.report.report import Comparison, Fact, Verdict, Version, _rewrite_page, report, write_versions

FIGURES = {"image_auroc": 0.9, "false_alarm_rate": 0.05, "latency_ms": 20.0, "size_bytes": 3.2e6}
VERSION = Version(
    model="pvqae-demo-brick",
    number="2",
    alias="challenger",
    registered="2026-01-02T03:04:05Z",
    reasons=("a champion exists: the gate decides",),
    lineage=(Fact("code (git)", "c0de" * 10, True), Fact("reason", "<script>alert(1)</script>")),
    comparison=Comparison("1", "champion", True, FIGURES, FIGURES | {"image_auroc": 0.8, "latency_ms": 10.0}),
    verdict=Verdict("refused", "1", ("kept: size: ratio 1.00", "broken: latency: ratio 2.00, limit 1.5")),
)


@pytest.fixture
def reported(make_class: Callable[..., Any], layout: Layout) -> Layout:
    for name in ("brick", "grass"):
        make_class().evaluate(layout.class_report(name), pictures=1)
    report(layout)
    return layout


def _text(layout: Layout) -> str:
    return (layout.reports / "index.html").read_text("utf-8")


def test_the_page_says_how_lineage_gets_there(reported: Layout) -> None:
    assert "No registered version is known for these results" in _text(reported)


def test_lineage_comparison_and_verdict_are_shown(reported: Layout) -> None:
    write_versions(reported.reports, {"brick": VERSION}, demo=True)
    text = _text(reported)
    for shown in ("pvqae-demo-brick", "c0de" * 10, ">c0dec0dec0de<", "ratio 2.00, limit 1.5", "2026-01-02T03:04:05Z"):
        assert shown in text
    assert "<script>alert(1)" not in text
    assert text.count("No registered version is known") == 1  # of the other class


def test_what_the_data_check_warned_of_is_shown(reported: Layout) -> None:
    write_versions(reported.reports, {"brick": VERSION}, demo=True, notes=("3 files left out: see <x>/quarantine.csv",))
    assert "3 files left out: see &lt;x&gt;/quarantine.csv" in _text(reported)


def test_a_stage_that_runs_again_keeps_versions_of_the_same_figures_only(reported: Layout) -> None:
    write_versions(reported.reports, {"brick": VERSION}, demo=True)
    report(reported)
    assert "c0dec0dec0de" in _text(reported)
    file = reported.class_report("brick") / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latency_ms": 99.0}))
    report(reported)
    assert "c0dec0dec0de" not in _text(reported)


def test_figures_are_compared_by_what_is_better_for_each() -> None:
    comparison = {
        "this_figures": FIGURES,
        "other_figures": FIGURES | {"image_auroc": 0.8, "latency_ms": 10.0, "size_bytes": 1e6},
    }
    changes = {row["name"]: row["change"] for row in page._compared(comparison)}
    assert changes == {"image AUROC": "better", "false alarms": "", "ms per image": "", "MB": "worse"}


def test_a_version_without_kept_figures_is_shown_as_unknown() -> None:
    rows = page._compared({"this_figures": FIGURES, "other_figures": {}})
    assert {row["other"] for row in rows} == {"n/a"}
    assert {row["change"] for row in rows} == {""}


def test_a_folder_without_a_report_is_named(layout: Layout) -> None:
    with pytest.raises(DataError, match="dvc repro -s report"):
        _rewrite_page(layout.reports, demo=False)
