"""A small process that outlives the flow just long enough to end what a killed flow left behind.

After SIGKILL the flow itself can do nothing: dvc, the training below it and Prefect's temporary server would live on.
A death signal (PR_SET_PDEATHSIG) reaches direct children only, exists on Linux only, and fires when the *thread* that
forked ends. So this process waits for the end of a pipe whose other end only the flow holds, then kills every process
that carries the flow's mark in its environment. It may also hold the flow's lock, so that the next flow starts only
when all are gone. Run as a file, it needs nothing but psutil.
"""

import sys
import time

import psutil

MARK = "PVQAE_SUPERVISOR"  # value: the pid of the flow; pvqae's command line also ends itself when that pid dies
PATIENCE = 30.0  # seconds after which a process that cannot be killed (stuck in the kernel) is left alone


def marked(pid: str) -> list[psutil.Process]:
    """Living processes with the mark of flow `pid`, youngest first: a training before the dvc that waits for it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue
    return sorted(found, key=lambda process: process.create_time(), reverse=True)


def end_all(pid: str, patience: float = PATIENCE) -> None:
    """Kill until none is left. Checkpoints are written beside and renamed, so a kill loses seconds, never a file."""
    deadline = time.monotonic() + patience
    while (found := marked(pid)) and time.monotonic() < deadline:
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(found, timeout=0.5)


def main(pid: str) -> None:
    if sys.stdin.buffer.read() != b"done":
        end_all(pid)


if __name__ == "__main__":
    main(sys.argv[1])
