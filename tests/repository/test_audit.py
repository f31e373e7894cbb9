"""`make audit` never reads "nothing known" out of an answer that says nothing."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import audit

SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
HOLE = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


def test_what_a_verdict_says() -> None:
    assert audit.verdict([SOUND]) == (0, ["1 packages checked, 0 known holes"])
    code, words = audit.verdict([SOUND, HOLE, UNKNOWN])
    assert code == 1
    assert "torch" in words[1]
    assert words[2] == "pillow 1.0: PYSEC-1, fixed in 2.0"
    assert audit.verdict([UNKNOWN])[0] == audit.verdict([])[0] == 2


def test_no_answer_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        audit.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="", stderr="Connection refused")
    )
    code, words = audit.audit(Path("constraints.txt"), 1)
    assert (code, words[0].startswith("NOT CHECKED")) == (2, True)
    assert "Connection refused" in words[0]

    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip-audit", 1)

    monkeypatch.setattr(audit.subprocess, "run", late)
    assert audit.audit(Path("constraints.txt"), 1)[0] == 2
