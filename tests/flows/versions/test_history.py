"""What a dataset's history shows: what is kept in the registry and in the ledgers, bounded and escaped."""

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.adapters.fakes import FakeRegistry
from flows.adapters.tracking import FLOW, Promotion, Registry
from flows.cli import use
from flows.core import lineage, shared_files
from flows.core.lineage import Owner
from flows.retrain.ledger import IntakePaths
from flows.versions import history, history_page, notes, promotions
from flows.workspace import workspace
from pvqae.core.errors import ConfigError

BEGIN = datetime(2026, 1, 1, 6, tzinfo=UTC)
OUTCOMES = ("pass", "refused", "insufficient")


def stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def add(
    registry: FakeRegistry, owner: Owner, when: datetime, outcome: str = "", kind: str = "", reason: str = "because"
) -> str:
    """A version as a flow leaves it: judged with `outcome`, and champion by `kind`, if given."""
    name = lineage.model_name(owner.dataset, owner.category)
    run = registry.start(f"pvqae-{owner.dataset}", owner.category)
    tags = dict.fromkeys(lineage.REQUIRED, "known") | {"mlflow_run": run, "trigger": "schedule", "reason": reason}
    tags |= lineage.figures({"image_auroc": 0.93, "false_alarm_rate": 0.04}, 7)
    version = registry.register(name, run, "model", tags, owner)
    registry.made[name, version] = stamp(when)
    before = registry.aliases.get((name, "champion"), "none")
    first = Promotion(stamp(when), "me", "challenger", "none", version, "challenger", ("waits",), run)
    registry.promote(name, "challenger", first)
    if outcome:
        number = int(version)
        found = {
            "image_auroc": 0.9, "difference": 0.01 * (number % 7 - 3), "low": 0.01 * (number % 7 - 4),
            "high": 0.01 * (number % 7 - 1), "aupro": 0.8, "alarm_rate": 0.01 * (number % 9), "alarm_low": 0.0,
            "target": 0.05, "normals": 200, "defects": 600,
        }  # fmt: skip
        judged = {"gate_outcome": outcome, "gate_champion": before, "gate_verdict": "kept: a: b\nbroken: latency: 3"}
        judged |= {"gate_when": stamp(when + timedelta(minutes=9)), "gate_figures": json.dumps(found)}
        registry.tag_version(name, version, judged)
    if kind:
        at = stamp(when + timedelta(minutes=10))
        moved = Promotion(at, "me", "champion", before, version, kind, (f"{kind}: {reason}",), run, outcome)
        registry.promote(name, "champion", moved)
    return version


def year(registry: FakeRegistry, root: Path, owner: Owner, days: int = 365) -> None:
    """A version a day, now and then a rollback, a pin, drift and labels."""
    name = lineage.model_name(owner.dataset, owner.category)
    paths = IntakePaths(root, owner.dataset)
    for day in range(days):
        when = BEGIN + timedelta(days=day)
        outcome = OUTCOMES[day % 3] if day else "pass"
        add(registry, owner, when, outcome, "gate" if outcome == "pass" and day else "" if day else "initial")
        registry.start(f"pvqae-{owner.dataset}", "retrain", tags={FLOW: "retrain", "decision": "train"})
        list(registry.runs.values())[-1].when = stamp(when)
        list(registry.runs.values())[-1].status = "FAILED" if day % 40 == 5 else "FINISHED"
        if day % 50 == 49:
            back = registry.aliases[name, "champion"]
            to = promotions.champions(registry.log[name])[-2]
            entry = Promotion(
                stamp(when + timedelta(hours=3)), "me", "champion", back, to, "rollback", ("misses",), "r"
            )
            registry.promote(name, "champion", entry)
        if day % 5 == 0:
            said = [
                {"sha256": "a" * 64, "label": "good", "who": "Ann", "when": stamp(when), "category": owner.category}
            ]
            paths.labels.parent.mkdir(parents=True, exist_ok=True)
            shared_files.append(paths.labels, said * 3)
        if day % 7 == 0:
            verdict = "drift" if day % 28 == 0 else "none"
            line = {
                "when": stamp(when),
                "version": "1",
                "verdict": verdict,
                "sentence": "s",
                "n": 100,
                "above": day % 9,
            }
            file = root / "scores" / name / "today" / "drift.jsonl"
            shared_files.append(file, [line])


def test_a_year_of_daily_versions_is_one_small_readable_page(tmp_path: Path) -> None:
    registry, owner = FakeRegistry(), Owner("line", "nut")
    year(registry, tmp_path, owner)
    file = history.write(registry, tmp_path, "line")
    assert file == tmp_path / "reports" / "line" / "history.html"
    text = file.read_text("utf-8")
    assert len(text) < 2_000_000
    assert text.count("<circle") > 3 * 365
    assert all(f'id="v0-{number}"' in text for number in range(1, 366))
    assert text.count("<details") >= 12 * 2
    assert text.count('class="month" open') == 2  # the newest month of the trainings and of the class
    assert "365 versions of 1 class since 2026-01-01" in text
    links = set(re.findall(r'href="#([\w-]+)"', text))
    assert links <= set(re.findall(r'id="([\w-]+)"', text))
    assert not re.search(r'(src|href)="(?!#|index\.html")', text)


@pytest.mark.parametrize("days", [0.01, 0.4, 3, 20, 100, 365, 2000, 9000])
def test_the_time_axis_has_few_round_ticks(days: float) -> None:
    axis = history_page._Axis(BEGIN, BEGIN + timedelta(days=days))
    ticks = axis.ticks
    assert 1 <= len(ticks) <= 8
    assert all(axis.begin <= when <= axis.end for when, _ in ticks)
    assert len({words for _, words in ticks}) == len(ticks)
    places = [axis.x(when) for when, _ in ticks]
    assert all(after - before > 80 for before, after in pairwise(places))


def test_many_classes_share_the_room(tmp_path: Path) -> None:
    registry = FakeRegistry()
    for number in range(40):
        owner = Owner("line", f"part{number}")
        for day in range(100):
            add(registry, owner, BEGIN + timedelta(days=day), "pass", "gate")
    text = history_page.render(history.collect(registry, tmp_path, "line"))
    assert len(text) < 3_000_000
    assert text.count("older rows are left out") == 40


def test_names_and_reasons_are_only_text(tmp_path: Path) -> None:
    registry, owner = FakeRegistry(), Owner("line", "nut")
    add(registry, owner, BEGIN, "pass", "gate", reason="<script>alert(1)</script>")
    notes.pin(registry, tmp_path, owner, '"><img src=x onerror=alert(1)>')
    text = history_page.render(history.collect(registry, tmp_path, "line"))
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert" in text


def test_pins_waits_and_approvals_stay_after_they_ended(tmp_path: Path) -> None:
    registry, owner = FakeRegistry(), Owner("line", "nut")
    add(registry, owner, BEGIN, "pass", "gate")
    notes.pin(registry, tmp_path, owner, "audit")
    notes.remember(registry, "pvqae-line-nut", "held", "2", "the champion is pinned")
    notes.unpin(registry, tmp_path, owner)
    (one,) = history.collect(registry, tmp_path, "line").classes
    kinds = [event.kind for event in one.events]
    assert kinds == ["gate", "pinned", "held", "unpinned"]
    (pin,) = one.pins
    assert pin.version == "1"
    assert pin.end
    assert pin.begin <= pin.end
    assert one.pinned == ""


def test_the_state_of_each_version_says_what_became_of_it(tmp_path: Path) -> None:
    registry, owner = FakeRegistry(), Owner("line", "nut")
    for outcome, kind in (("", "initial"), ("pass", "gate"), ("refused", ""), ("", "")):
        add(registry, owner, BEGIN, outcome, kind)
    registry.promote("pvqae-line-nut", "champion", Promotion(stamp(BEGIN + timedelta(days=1)), "me", "champion", "2",
                     "1", "rollback", ("bad",), "run"))  # fmt: skip
    (one,) = history.collect(registry, tmp_path, "line").classes
    assert [version.state for version in one.versions] == ["champion", "taken back", "refused", "waits"]
    assert [reign.version for reign in one.reigns] == ["1", "2", "1"]
    assert one.champion == "1"


def test_a_verdict_of_an_older_release_is_read_from_its_file_once(tmp_path: Path) -> None:
    registry, owner = FakeRegistry(), Owner("line", "nut")
    add(registry, owner, BEGIN, "pass", "gate")
    tags = registry.version_tags("pvqae-line-nut", "1")
    del tags["gate_figures"]
    figures = {"own_auroc": 0.8, "auroc": {"champion": 0.7, "challenger": 0.8, "low": 0.05, "high": 0.2}, "normals": 3}
    content = json.dumps({"figures": figures}).encode()
    registry.folders[tags["mlflow_run"], "gate"] = {"gate-version-1-against-none.json": content}
    for _ in range(2):
        (one,) = history.collect(registry, tmp_path, "line").classes
        assert one.versions[0].gate["difference"] == pytest.approx(0.1)
        registry.folders.clear()


def test_lines_that_cannot_be_read_leave_the_others(tmp_path: Path) -> None:
    registry, owner = FakeRegistry(), Owner("line", "nut")
    add(registry, owner, BEGIN, "", "initial")
    file = tmp_path / "scores" / "pvqae-line-nut" / "a" / "drift.jsonl"
    old = {"when": "2026-01-02T00:00:00Z", "version": "1", "verdict": "none", "since": "", "sentence": "fine"}
    shared_files.append(file, [old, {**old, "when": "yesterday"}, {"verdict": "?"}])
    (one,) = history.collect(registry, tmp_path, "line").classes
    assert [event.kind for event in one.events] == ["initial", "no drift"]


def test_labels_are_where_the_review_keeps_them(tmp_path: Path) -> None:
    assert history.labels_file(tmp_path, "line") == IntakePaths(tmp_path, "line").labels


def test_the_command_writes_the_page_and_prints_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = FakeRegistry()
    for name in ("line", "belt"):
        add(found, Owner(name, "nut"), BEGIN, "pass", "gate")
    monkeypatch.setattr(use, "project", lambda: tmp_path)
    monkeypatch.setattr(use, "registry", lambda root, strict=True: found)
    typed = CliRunner().invoke(use.app, ["history"])
    assert typed.stdout.split() == [str(tmp_path / "reports" / name / "history.html") for name in ("belt", "line")]
    assert all(Path(name).is_file() for name in typed.stdout.split())
    (all_of_it,) = json.loads(CliRunner().invoke(use.app, ["history", "line", "--json"]).stdout)
    assert all_of_it["classes"][0]["versions"][0]["when"] == "2026-01-01T06:00:00+00:00"
    assert isinstance(CliRunner().invoke(use.app, ["history", "lines"]).exception, ConfigError)


def test_a_page_is_left_to_the_flow_that_works_on_the_dataset(tmp_path: Path) -> None:
    with shared_files.held(workspace.lock_file(tmp_path, "line")):
        assert history.refresh(FakeRegistry(), tmp_path, "line") is None
    assert history.refresh(FakeRegistry(), tmp_path, "line")


def test_a_page_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "reports").write_text("no folder")
    assert history.write(FakeRegistry(), tmp_path, "line") is None
    assert "the page was not written" in capsys.readouterr().out


def test_mlflow_lists_versions_and_flows_in_pages(registry: Registry) -> None:
    for number in range(3):
        run = registry.start("pvqae-line", "train", tags={FLOW: "train", "number": str(number)})
        registry.start("pvqae-line", "nut", run, {"stage": "nut"})
        registry.register("pvqae-line-nut", run, "/models/x", {"number": str(number)}, Owner("line", "nut"))
        registry.finish(run, "FAILED" if number else "FINISHED")
    assert [(one.number, one.tags["number"]) for one in registry.versions_of("pvqae-line-nut")] == [
        ("1", "0"), ("2", "1"), ("3", "2"),
    ]  # fmt: skip
    flown = registry.flows_of("pvqae-line")
    assert [(one.status, one.tags["number"]) for one in flown] == [("FINISHED", "0"), ("FAILED", "1"), ("FAILED", "2")]
    assert all(one.when.startswith("20") for one in flown)
    assert registry.versions_of("pvqae-other-nut") == registry.flows_of("pvqae-other") == []
