"""What a check found: told to a person as a message, kept for programs as validation.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvqae.datasets.rules import Rule


@dataclass(frozen=True)
class Outcome:
    """What became of a rule: how many rows are against it, and in `rows` the first of them."""

    rule: Rule
    success: bool
    unexpected: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """A checked dataset: its size, images per class and split, what is worth knowing, and the page to open. `files`:
    how many of its files are used, in quarantine and ignored; together they are all."""

    rows: int
    classes: dict[str, dict[str, int]]
    quarantined: int
    files: dict[str, int]
    warnings: tuple[str, ...]
    docs: Path

    def __str__(self) -> str:
        counts = "; ".join(f"{name} {_listed(parts)}" for name, parts in self.classes.items())
        said = f"{self.rows} images hold every expectation: {counts}. Files: {_listed(self.files)}. {self.docs}"
        return "\n".join([said, *(f"warning: {text}" for text in self.warnings)])


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{part} {count}" for part, count in parts.items())


def failed(outcomes: Sequence[Outcome], *, warning: bool = False) -> list[Outcome]:
    """The outcomes that stop everything, or those that only warn."""
    return [outcome for outcome in outcomes if not outcome.success and outcome.rule.warning == warning]


def line(outcome: Outcome) -> str:
    """An expectation in words with the rows against it."""
    more = outcome.unexpected - len(outcome.rows)
    listed = ", ".join(outcome.rows) + (f" and {more} more" if more > 0 else "")
    return f"{outcome.rule.name}: expected {outcome.rule.words}; {outcome.unexpected} not: {listed}"


def message(outcomes: Sequence[Outcome], summary: Summary) -> str:
    """The verdict in words, with the rows and the repair of each failed expectation."""
    stops = failed(outcomes)
    held = f"{len(outcomes) - len(stops)} of {len(outcomes)} expectations hold for {summary.rows} images"
    lines = [f"  {line(outcome)}\n    repair: {outcome.rule.repair}" for outcome in stops]
    notes = [f"  warning: {text}" for text in summary.warnings]
    return "\n".join([f"{held}; nothing is trained:" if stops else held, *lines, *notes])


def report(summary: Summary, outcomes: Sequence[Outcome]) -> str:
    """The text of validation.json."""
    expectations = [
        {"name": o.rule.name, "success": o.success, "unexpected": o.unexpected, "warning": o.rule.warning}
        for o in outcomes
    ]
    values = {
        "success": not failed(outcomes),
        "expectations": expectations,
        "rows": summary.rows,
        "classes": summary.classes,
        "quarantined": summary.quarantined,
        "files": summary.files,
        "warnings": summary.warnings,
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
