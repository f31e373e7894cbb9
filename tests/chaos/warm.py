"""Flows forked from one process that has imported all they need: a hundred commands in minutes, each to be killed.

It reads lines of JSON: {"words": ["train"], "log": "/file"} starts a command and answers its pid, {"pid": 7} answers
its exit code, or null while it runs. Run as a file, in the environment and folder of a project, with the names of the
modules that the commands need.
"""

import importlib
import json
import os
import sys
from pathlib import Path


def become(words: list[str], log: str) -> None:
    """In the child: the command `python -m flows WORDS`, which ends the process."""
    from flows.cli import main as door

    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["flows", *words]
    door.main()


def main() -> None:
    from flows.core import environment

    environment.prepare(Path.cwd())  # before Prefect and MLflow read it
    for name in sys.argv[1:]:
        importlib.import_module(name)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if "words" not in asked:
            pid, status = os.waitpid(asked["pid"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            become(asked["words"], asked["log"])


if __name__ == "__main__":
    main()
