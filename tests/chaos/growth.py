"""What a process holds, and whether it holds more and more."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SLACK_MB = 24.0  # by which allocators and caches of a settled process may differ


@dataclass(frozen=True)
class Use:
    """Of one process at one moment; memory in MB."""

    memory: float
    files: int
    threads: int
    children: int


def use_of(process: psutil.Process) -> Use:
    with process.oneshot():
        memory = process.memory_info().rss / 2**20
        return Use(memory, process.num_fds(), process.num_threads(), len(process.children(recursive=True)))


def megabytes(path: Path) -> float:
    """Of a file or all files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files) / 1e6


def grown(uses: Sequence[Use]) -> list[str]:
    """What grew between the middle of the uses and their end, in words; a process settles in the first half."""
    middle, end = uses[len(uses) // 2], uses[-1]
    found = [
        f"{name}: {getattr(middle, name)} → {getattr(end, name)}"
        for name in ("files", "threads", "children")
        if getattr(end, name) > getattr(middle, name) + 1  # one may be just closing
    ]
    if end.memory > middle.memory * 1.05 + SLACK_MB:
        found.append(f"memory: {middle.memory:.0f} → {end.memory:.0f} MB")
    return found
