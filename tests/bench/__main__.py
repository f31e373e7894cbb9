"""`make bench`: every row of `docs/performance.md`, each in a process of its own, printed once measured.

`python -m tests.bench [NAME ...] [--quick]`; names are the keys of `BENCHES`, or all of a group: `against`. What is
measured is kept in `docs/figures/bench`, so a run of some renews only their rows of the page.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from flows.experiments.page import markdown, processor
from pvqae.core import runtime
from pvqae.core.files import write_text
from tests.bench.rows import Row, Size

PROJECT = Path(__file__).parents[2]
KEPT = PROJECT / "docs" / "figures" / "bench"
PAGE = PROJECT / "docs" / "performance.md"
BEGIN, END = "<!-- rows -->", "<!-- end of rows -->"
HEADS = ("what", "ours", "against", "ratio", "floor", "reached", "")
# name → module.function, which takes a `Size` and returns rows; imported only in the bench's own process
BENCHES: dict[str, str] = {
    "dwt": "kernels.dwt",
    "lookup": "kernels.lookup",
    "imports": "imports.imports",
    "installation": "installation.installation",
    "first": "first.first",
    "manifest": "manifest.manifest",
    "validation": "validation.validation",
    "noop": "noop.noop",
    "noop_100": "noop.hundred",
    "orchestration": "orchestration.orchestration",
    "scoring_scale": "scoring_scale.scoring_scale",
    "thousand": "thousand.thousand",
    "dvc_lock": "dvc_lock.dvc_lock",
    "engine": "inference.compiled",
    "latency": "inference.latency",
    "share": "inference.share",
    "memory": "inference.memory",
    "vqgan": "training.vqgan_step",
    "frozen": "training.frozen",
    "whole": "training.whole",
    "fan_out": "training.fan_out",
    "limits": "limits.limits",
    "scans": "scans.scans",
    "against.run": "against.run_",
    "against.fit": "against.fit",
    "against.score": "against.score",
    "against.large": "against.large",
    "against.serve": "against.serve",
    "against.gate": "against.gate",
    "against.retrain": "against.retrain",
}


def measure(name: str, size: Size) -> list[Row]:
    """Run one bench in this process."""
    module, _, function = BENCHES[name].rpartition(".")
    rows: list[Row] = getattr(importlib.import_module(f"tests.bench.{module}"), function)(size)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; none: all")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run? Its figures mean nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, as JSON
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(BENCHES) - {name.partition(".")[0] for name in BENCHES}:
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    if asked.here:
        print(json.dumps([asdict(row) for row in measure(asked.names[0], Size(asked.quick))]))
        return
    names = [name for name in BENCHES if not asked.names or {name, name.partition(".")[0]} & set(asked.names)]
    failed = [name for name in names if not _apart(name, asked.quick)]
    if not asked.quick:
        _write()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _apart(name: str, quick: bool) -> bool:
    """One bench in a fresh process: its memory and threads are its own."""
    command = [sys.executable, "-m", "tests.bench", name, "--here", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return False
    found = [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    print("\n".join(markdown(HEADS, map(cells, found))[2:]), flush=True)
    if not quick:
        kept = {"machine": _machine(), "rows": [asdict(row) for row in found]}
        write_text(KEPT / f"{name}.json", json.dumps(kept, indent=1) + "\n")
    return True


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    mark = {True: "yes", False: "**no**", None: ""}[row.reached]
    return [row.what, row.ours, row.against, ratio, row.floor, mark, row.note]


def _write() -> None:
    files = [KEPT / f"{name}.json" for name in BENCHES]
    kept = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
    tables = []
    for machine in sorted({found["machine"] for found in kept}):
        rows = [Row(**row) for found in kept if found["machine"] == machine for row in found["rows"]]
        tables += [machine, "\n".join(markdown(HEADS, map(cells, rows)))]
    body = "\n\n".join(tables)
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{body}\n{END}{rest.partition(END)[2]}")


def _machine() -> str:
    import torch

    bf16 = "with" if runtime._cpu_has_bf16() else "without"
    return (
        f"{os.cpu_count()} cores, {processor()}, {bf16} bf16, no GPU, torch {torch.__version__}, "
        f"Python {platform.python_version()}."
    )


if __name__ == "__main__":
    main()
