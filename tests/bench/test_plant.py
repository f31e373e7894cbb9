"""What a year, a burst and a large class print; the runs themselves take hours."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pvqae.core.errors import DataError
from tests.bench import plant
from tests.chaos.projects import Project


def night(number: int, **more: object) -> dict[str, object]:
    return {"night": number, "seconds": 10.0 + number, "arrived": 20, "verdict": "promoted", "version": number} | more


def test_the_nights_that_were_looked_at_are_the_columns() -> None:
    before, after = (dict.fromkeys(plant.PLACES, size) for size in (5.0, 3.0))
    look = {"commands": {"`gc --yes`": 2.5}, "sizes": before, "after gc": after}
    done = [night(number, **(look if number in (1, 8) else {})) for number in range(1, 9)]
    lines = plant._told(done).splitlines()
    assert lines[0] == "|  | night 1 | night 8 |"
    assert lines[2] == "| a retraining, s (median of 11 nights) | 14.0 | 16.0 |"
    assert "| `gc --yes`, s | 2.5 | 2.5 |" in lines
    assert "| git, MB before → after gc | 5.0 → 3.0 | 5.0 → 3.0 |" in lines
    assert lines[-1] == "8 nights of 20 images; verdicts: promoted 8."


def test_the_last_word_about_an_object_counts(tmp_path: Path) -> None:
    found = Project(tmp_path / "project")
    assert plant._states(found) == Counter()
    ledger = found.root / ".pvqae" / "arrivals" / plant.DATASET / "ledger.jsonl"
    ledger.parent.mkdir(parents=True)
    entries = [("a", "seen"), ("b", "seen"), ("a", "versioned")]
    ledger.write_text("".join(json.dumps({"key": key, "state": state}) + "\n" for key, state in entries))
    assert plant._states(found) == Counter(versioned=1, seen=1)


def test_crops_need_the_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVQAE_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="expected the folder mtsd"):
        next(plant.crops(1))
