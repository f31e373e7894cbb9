"""Every bench runs; what a quick one prints means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import BENCHES, PROJECT, cells
from tests.bench.rows import Row, at_least, at_most

# The others start whole flows or processes; they take half a minute and more even when they are quick.
FAST = ("dwt", "lookup", "engine", "latency", "share", "vqgan", "frozen")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.integration) for name in BENCHES]
)
def test_a_bench_gives_rows(name: str) -> None:
    command = [sys.executable, "-m", "tests.bench", name, "--here", "--quick"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [Row(**values) for values in json.loads(done.stdout.splitlines()[-1])]
    assert rows
    assert all(row.what and row.ours for row in rows)
    assert all(row.ratio is None or row.ratio > 0 for row in rows)


def test_a_row_says_whether_its_floor_is_reached() -> None:
    faster = Row("a", "1 s", "b, 2 s", 2.0, *at_least(2.0, 1.8))
    slower = Row("a", "3 s", "", None, *at_most(3.0, 2.0, " s"))
    assert cells(faster) == ["a", "1 s", "b, 2 s", "2", "≥ 1.8×", "yes", ""]
    assert "**no**" in cells(slower)


def test_an_unknown_bench_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "dtw"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no bench dtw; there are dwt, lookup" in done.stderr
