"""Every claim about ourselves in the comparison has its page or file; what we lack says so."""

import re

import pytest

from tests.docs.commands import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "comparison.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| feature")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("*"))
def test_a_claim_has_its_page(row: list[str]) -> None:
    assert len(row) == 8
    assert re.search(r"\[[^]]+\]\([^)]+\)", row[1])
    assert set(row[2:]) <= {"yes", "partly", "-", "21"}


def test_what_is_lacking_is_said() -> None:
    lacking = (ROOT / "docs" / "comparison.md").read_text("utf-8").partition("## What this project lacks")[2]
    rows = [line for line in lacking.splitlines() if line.startswith("| ") and not line.startswith("| feature")]
    assert len(rows) >= 5
    assert all(row.split("|")[2].strip().startswith("no: ") for row in rows)
