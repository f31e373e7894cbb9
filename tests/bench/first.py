"""How long a newcomer waits: for the first line, the first trained class and the table of `make run`'s flow."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.rows import Row, Size
from tests.clones import TINY, clone

# What is waited for, and the words by which it shows in the output.
SIGNS = {"the first line": "", "the first class has its figures": "image_auroc"}
END = "the table and the commands that open the results"


def first(size: Size) -> list[Row]:
    """In a fresh clone, the installation in place: that takes as long as the network does."""
    words = [word for setting in (*TINY, "train.steps=5") for word in ("--set", setting)] if size.quick else []
    with tempfile.TemporaryDirectory() as folder:
        project = clone(Path(folder))
        # As `make run` does it, with every core: the clone's environment is for tests that run side by side.
        environ = {key: value for key, value in project.environ.items() if key != "OMP_NUM_THREADS"}
        found = waited([sys.executable, "-m", "flows", "train", *words], project.root, environ)
    return [Row(f"`make run`: {what}", f"{took:.1f} s", "", None, "", None) for what, took in found.items()]


def waited(command: list[str], cwd: Path, environ: dict[str, str]) -> dict[str, float]:
    """Seconds from the start until each sign was printed. Raises `RuntimeError` when the command fails."""
    start, found, lines = time.perf_counter(), {}, []
    with subprocess.Popen(
        command, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for what, sign in SIGNS.items():
                if what not in found and sign in line:
                    found[what] = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {''.join(lines)[-2000:]}")
    return found | {END: time.perf_counter() - start}
