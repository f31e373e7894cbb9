import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pvqae.core import config
from pvqae.core.errors import DataError, IntegrityError
from pvqae.core.files import Sealed
from pvqae.drift import drift, drift_report, profile

BUNDLE = "ab" * 32
SETTINGS = config.Drift(draws=300)
THRESHOLD = 2.0


def normals(groups: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 3 * groups
    columns = {name: 0.5 + 0.05 * rng.standard_normal(n) for name in (*profile.STATISTICS, "level_0", "level_1")}
    return pd.DataFrame(
        columns | {profile.SCORE: rng.standard_normal(n), profile.GROUP: np.repeat(np.arange(groups), 3)}
    )


def rows(n: int = 60, start: int = 60, shift: float = 0.0) -> list[dict[str, Any]]:
    """Rows of a scores.jsonl, one a minute; brightness is shifted from image `start` on."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(n):
        statistics = {name: 0.5 + 0.05 * rng.standard_normal() for name in profile.STATISTICS}
        statistics["brightness"] += shift if number >= start else 0
        found.append(
            {
                "path": f"{n - number:03}.png",
                "taken": f"2026-01-01T{number // 60:02}:{number % 60:02}:00",
                "score": float(rng.standard_normal()),
                "bundle_sha256": BUNDLE,
                "level_shares": (0.5 + 0.05 * rng.standard_normal(2)).tolist(),
                "parts": {},
                "statistics": statistics,
                "error": "",
            }
        )
    return found


def assess(found: list[dict[str, Any]], groups: int = 20) -> drift_report.Report:
    return drift_report.Report.of(normals(groups), drift_report.table(found, BUNDLE), THRESHOLD, SETTINGS)


def test_no_drift_says_what_would_have_shown() -> None:
    report = assess(rows())
    assert (report.verdict, report.since) == ("none", "")
    assert re.search(r"No drift: 60 images against 60 trusted normals; a shift of \d\.\d deviations", report.sentence)


def test_drift_says_what_by_how_much_and_since_when() -> None:
    report = assess(rows(n=180, start=90, shift=0.3)[::-1])  # in any order
    assert report.verdict == "drift"
    assert report.since == "2026-01-01T01:30:00"
    assert report.sentence.startswith("Drift since 2026-01-01T01:30:00: brightness rose from a median of 0.5")
    assert [window.largest > 1 for window in report.windows] == [False] * 3 + [True] * 3


def test_a_batch_of_one_window_drifted_since_its_first_image() -> None:
    assert assess(rows(n=40, start=0, shift=0.3)).since == "2026-01-01T00:00:00"


def test_without_times_the_first_image_is_named() -> None:
    found = [row | {"taken": ""} for row in rows(n=40, start=0, shift=0.3)]
    assert assess(found).since == "040.png"


@pytest.mark.parametrize(
    ("n", "groups", "words"), [(29, 20, "29 images, at least 30"), (40, 7, "of 7 parts"), (0, 20, "0 images")]
)
def test_too_little_is_not_judged(n: int, groups: int, words: str) -> None:
    report = assess(rows(n=n), groups)
    assert report.verdict == "insufficient"
    assert words in report.sentence


def test_many_photographs_of_each_part_need_a_larger_batch() -> None:
    often = normals(20).assign(group=np.repeat(np.arange(10), 6))
    report = drift_report.Report.of(often, drift_report.table(rows(n=47), BUNDLE), THRESHOLD, SETTINGS)
    assert "47 images, at least 48 are needed" in report.sentence


def test_failed_images_are_left_out_and_foreign_scores_refused() -> None:
    broken = {"path": "x.png", "error": "unreadable", "bundle_sha256": BUNDLE}
    assert len(drift_report.table([broken, *rows(3)], BUNDLE)) == 3
    with pytest.raises(DataError, match="expected scores of bundle cdcdcdcdcdcd"):
        drift_report.table(rows(3), "cd" * 32)


def test_page_and_json(tmp_path: Path) -> None:
    found = drift_report.table(rows(n=180, start=90, shift=0.3), BUNDLE)
    report = drift_report.Report.of(normals(), found, THRESHOLD, SETTINGS)
    report.write(normals(), found, THRESHOLD, "<b>model</b>", tmp_path)
    values = json.loads((tmp_path / "drift.json").read_text())
    assert values["verdict"] == "drift"
    assert values["drifted"] == ["brightness"]
    assert {one["name"] for one in values["figures"]} == set(drift._names(normals()))
    page = (tmp_path / "drift.html").read_text()
    assert "<b>model</b>" not in page
    assert page.count("<svg") == len(values["figures"]) + 1
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "prefers-color-scheme: dark" in page
    assert page.index("brightness") < page.index("contrast")


def test_the_page_of_too_few_images_has_the_reason(tmp_path: Path) -> None:
    found = drift_report.table(rows(n=5), BUNDLE)
    report = drift_report.Report.of(normals(), found, THRESHOLD, SETTINGS)
    report.write(normals(), found, THRESHOLD, "m", tmp_path)
    assert "at least 30 are needed" in (tmp_path / "drift.html").read_text()


def test_a_bundle_without_a_profile_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="python -m flows train"):
        profile.read(Sealed(tmp_path, "", {}))


def test_level_shares_leave_padding_out() -> None:
    levels = np.array([[-1, 0, 2], [-1, 2, 2]])
    assert profile.level_shares(levels, 3) == {"level_0": 0.25, "level_1": 0.0, "level_2": 0.75}


def test_names_of_images_are_escaped(tmp_path: Path) -> None:
    harm = '"><img src=x onerror=alert(1)></script><b>'
    made = [row | {"taken": "", "path": f"{harm}{row['path']}"} for row in rows(n=180, start=0, shift=0.3)]
    found = drift_report.table(made, BUNDLE)
    report = drift_report.Report.of(normals(), found, THRESHOLD, SETTINGS)
    assert harm in report.since
    report.write(normals(), found, THRESHOLD, harm, tmp_path)
    page = (tmp_path / "drift.html").read_text()
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img src=x onerror" in page
