"""Fuzzing guided by coverage, each parser in a process of its own; `tests/chaos/guided.py` says what is promised."""

import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.chaos.figures import Figure, record, size

PROJECT = Path(__file__).parents[2]
TARGETS = (
    *(
        "manifest",
        "labels",
        "params",
        "classes",
        "ledger",
        "reviews",
        "scores",
        "image",
        "tiff",
        "calibration",
        "profile",
    ),
)
SECONDS = 10, 90  # for a target, quick and full

pytestmark = pytest.mark.skipif(not find_spec("atheris"), reason="atheris is not installed: it has wheels for Linux")


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_reach_new_lines_break_no_promise(target: str, tmp_path: Path) -> None:
    begun, runs, seconds = time.monotonic(), size(300, 100_000), size(*SECONDS)
    command = [sys.executable, "-m", "tests.chaos.guided", target, str(runs), str(seconds), str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, errors="replace", timeout=600)
    found = re.search(r"stat::number_of_executed_units: +(\d+)", done.stderr)
    tried, kept = int(found[1]) if found else 1, re.findall(r"cov: (\d+)", done.stderr)
    lost = int(done.returncode != 0)
    note = f"{kept[-1] if kept else 0} branches reached"
    what = f"fuzzing guided by coverage: {target}"
    record(Figure(f"guided-{target}", what, tried, tried - lost, lost, time.monotonic() - begun, note))
    assert not lost, done.stdout[-3000:] + done.stderr[-3000:]
    assert tried > 100
