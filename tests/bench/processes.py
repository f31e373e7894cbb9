"""What a command costs: wall time, processor time and peak memory, its children's included."""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """`peak_mb`: of the largest single process."""

    seconds: float
    cpu: float  # seconds of processor time
    peak_mb: float


def run(command: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> tuple[str, Cost]:
    """Output and cost of a command. Raises `RuntimeError` with its last words when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text[-2000:]}")
    return text, cost(time.perf_counter() - start, used)


def cost(seconds: float, used: resource.struct_rusage) -> Cost:
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
