"""A stage that a flow started ends with the flow, even when that was killed and could stop nothing."""

import os
import threading
import time

SUPERVISOR = "PVQAE_SUPERVISOR"  # pid of the flow, set by it


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _watch(pid: int, seconds: float) -> None:
    while _alive(pid):
        time.sleep(seconds)
    os._exit(143)  # the checkpoint on disk is whole: it was renamed into place


def start(seconds: float = 0.5) -> None:
    """Begin to watch the process named in the environment, if there is one."""
    pid = os.environ.get(SUPERVISOR, "")
    if pid.isdigit():
        threading.Thread(target=_watch, args=(int(pid), seconds), daemon=True).start()
