"""What DVC takes for one stage of a thousand classes that are done: its lock file has an entry for each of theirs."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from flows.adapters import dvc_command
from flows.adapters.versioning import COMMAND
from tests.bench.processes import run
from tests.bench.rows import Row, Size

STAGES = ("train", "prior", "calibrate", "evaluate")


def dvc_lock(size: Size) -> list[Row]:
    count = size.of(3, 1000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], root, dict(os.environ))
        (root / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo 1 > one\n    outs: [one]\n")
        stages = {f"{stage}@class_{number:04}": entry(number) for number in range(count) for stage in STAGES}
        (root / "dvc.lock").write_text(dvc_command.text_of({"schema": "2.0", "stages": stages}))
        theirs, ours = (stage(root, *words) for words in (("-m", "dvc"), ("-P", str(COMMAND))))
    what = f"{count:,} classes: one stage more in DVC's lock file of {len(stages):,}"
    return [Row(what, f"{ours:.1f} s", f"DVC's own command, {theirs:.1f} s", theirs / ours, "", None)]


def stage(root: Path, *words: str) -> float:
    return run([sys.executable, *words, "repro", "-q", "-f", "-s", "one"], root, dict(os.environ))[1].seconds


def entry(number: int) -> dict[str, Any]:
    """As long as a stage's mean entry."""
    paths = [
        {"path": f"pvqae/part_{i}", "hash": "md5", "md5": f"{number + i:032x}.dir", "size": 1, "nfiles": 9}
        for i in range(6)
    ]
    params = {"params.yaml": {"train": {f"key_{i}": i / 7 for i in range(20)}}}
    return {"cmd": f"pvqae train class_{number:04}", "deps": paths, "params": params, "outs": paths[:1]}
