"""The process that has imported what the stages of a flow need, beside the first of them."""

import contextlib
import sys
import threading
from collections.abc import Set
from pathlib import Path

from flows.core import environment
from flows.core.processes import Cancelled, Supervisor
from pvqae.core import runtime

VALIDATION = {"manifest", "validate"}


def start(workspace: Path, supervisor: Supervisor, stages: Set[str]) -> None:
    """Begin to import for `stages`; until that is done, and where it fails, stages start as they do without it.

    The caller holds the workspace's lock. The process ends with the supervisor.
    """
    # Elsewhere a fork of a process with threads is not safe; nor is one of a process that may have asked CUDA's driver.
    if sys.platform != "linux" or runtime.may_have_gpu():
        return
    socket = workspace / environment.FORKSERVER
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)  # of a flow that was killed
    validates = ["validates"] if VALIDATION & stages else []
    command = [sys.executable, "-m", "pvqae.cli.forkserver", environment.FORKSERVER, *validates]
    threading.Thread(target=_run, args=(command, workspace, supervisor), daemon=True).start()


def _run(command: list[str], workspace: Path, supervisor: Supervisor) -> None:
    with contextlib.suppress(Cancelled):
        supervisor.run(command, workspace, environment.for_stages(workspace))
