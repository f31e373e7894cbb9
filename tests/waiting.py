"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def until(holds: Callable[[], bool], seconds: float = 20, pause: float = 0.005) -> None:
    """Look again and again; fails when it does not hold after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(pause)
