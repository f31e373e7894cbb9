"""Drift of scored images: the report, a history of reports, and an event on which retraining can start."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.adapters.prefect_client import Notifier, PrefectEvents
from pvqae.core import config
from pvqae.core.files import Sealed, write_text
from pvqae.drift.drift_report import Report
from pvqae.inference import bundle as bundles
from pvqae.serving import batch_cli

EVENT = "pvqae.drift.detected"
HISTORY = "drift.jsonl"


@dataclass(frozen=True)
class Judged:
    """`since`: of the present drift, over all reports without a break; "" when there is none."""

    report: Report
    since: str

    @property
    def exit_code(self) -> int:
        return batch_cli.EXITS[self.report.verdict]


def judge(
    bundle: Sealed, scores: Path, settings: config.Drift, model: str, version: str, notifier: Notifier | None = None
) -> Judged:
    """Judge the scores below the folder `scores` by the files of a bundle; append to its drift.jsonl; send an event if
    they drifted."""
    report = batch_cli.judge(bundle, scores, settings, model)
    facts = bundle.json("config.json", bundles.REPAIR)
    past = history(scores)
    since = began(past, report)
    entry = {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": version,
        "verdict": report.verdict,
        "since": since,
        "sentence": report.sentence,
    }
    write_text(scores / HISTORY, "".join(json.dumps(one) + "\n" for one in [*past, entry]))
    if report.verdict == "drift":
        payload = figures(report, facts["category"], model, version, since)
        (notifier or PrefectEvents()).emit(EVENT, f"pvqae.dataset.{facts['dataset']}", payload)
    return Judged(report, since)


def history(scores: Path) -> list[dict[str, Any]]:
    """Earlier reports on the same images' place, oldest first."""
    file = scores / HISTORY
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def began(past: list[dict[str, Any]], report: Report) -> str:
    """When a drift that the latest reports have told of without a break was first seen."""
    if report.verdict != "drift":
        return ""
    since = report.since
    for entry in reversed(past):
        if entry["verdict"] == "none":
            break
        since = min(since, entry["since"] or since)
    return since


def figures(report: Report, category: str, model: str, version: str, since: str) -> dict[str, Any]:
    """The event's payload: what a program or a person decides by."""
    found = report.comparison
    assert found is not None
    return {
        "class": category,
        "model": model,
        "version": version,
        "since": since,
        "sentence": report.sentence,
        "drifted": list(found.drifted),
        "n": found.n,
        "ks": {f.name: round(f.ks, 4) for f in found.figures},
        "limits": {f.name: round(f.limit, 4) for f in found.figures},
        "above_threshold": found.share.above,
    }
