"""Retrainings one after another in one process: run by `test_long_running` in a project of its own.

`python -m tests.chaos.rounds COUNT SECONDS SETTING ...` prints a line of JSON after each; it starts none after SECONDS.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from flows.core import environment
from tests.chaos.growth import Use, megabytes, use_of

PLACES = {
    "database": (".pvqae/mlflow/mlflow.db",),
    "artifacts": (".pvqae/mlflow/artifacts",),
    "prefect": (".pvqae/prefect",),
    "dvc": (".dvc/cache", ".pvqae/remote"),
    "cache": (".pvqae/cache",),
    "work": (".pvqae/work", ".pvqae/runs/demo/.pvqae/work"),
}


def main(count: int, seconds: float, settings: list[str]) -> None:
    root = Path.cwd()
    environment.prepare(root)
    from flows.train.train import train

    start = time.monotonic()
    for number in range(count):
        if time.monotonic() - start > seconds:
            break
        begun = time.monotonic()
        result = train(str(root), "", (*settings, f"seed={number}"))
        facts = {
            "version": result.versions[0].version,
            "seconds": time.monotonic() - begun,
            "use": asdict(use_of(psutil.Process())),
            "sizes": {name: sum(megabytes(root / place) for place in places) for name, places in PLACES.items()},
        }
        print("ROUND " + json.dumps(facts), flush=True)


def rounds(text: str) -> list[dict[str, object]]:
    """The lines of JSON among what it printed."""
    return [json.loads(line.removeprefix("ROUND ")) for line in text.splitlines() if line.startswith("ROUND ")]


def use(facts: dict[str, object]) -> Use:
    values = facts["use"]
    assert isinstance(values, dict)
    return Use(**values)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
