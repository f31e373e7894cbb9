"""What keeps the services up: a loop that starts again whatever has died, and the unit of systemd that runs it."""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from flows.machines import control
from flows.machines.service_files import ServiceError
from pvqae.core.config import Services
from pvqae.core.files import write_text

_PAUSE, _LONGEST = 10.0, 300.0  # seconds between two looks; after failures in a row, at most


def keep(
    root: Path, settings: Services, say: Callable[[str], None] = print, pause: float = _PAUSE, looks: int | None = None
) -> None:
    """Start the services, and again those that are not healthy, until the process ends or after so many `looks`.

    A service that can't be started is told, and tried again after a pause that grows. Raises `ServiceError` where the
    services can't be started to begin with.
    """
    control.up(root, settings, say)
    failed = 0
    while looks is None or looks > 0:
        time.sleep(min(_LONGEST, pause * 2**failed))
        looks = None if looks is None else looks - 1
        ill = [item for item in control.status(root, settings) if item.health != "healthy"]
        if not ill:
            failed = 0
            continue
        say("; ".join(f"{item.name} is {item.health}: starting it again" for item in ill))
        try:
            control.up(root, settings, lambda line: None if line.endswith("runs already") else say(line))
            failed = 0
        except ServiceError as error:
            failed += 1
            say(f"{error}\ntrying again in {min(_LONGEST, pause * 2**failed):.0f} s")


_UNIT = """[Unit]
Description=Servers of the pvqae project {root}
StartLimitIntervalSec=0

[Service]
WorkingDirectory={root}
ExecStart={python} -m flows services keep
ExecStop={python} -m flows services down
# A keeper that dies takes no server along, and the next one finds them.
KillMode=process
Restart=always
RestartSec=10

[Install]
WantedBy=default.target
"""


def unit(root: Path) -> str:
    """Return the text of a user's unit of systemd that keeps the services of the project at `root` up."""
    # A path with blanks or percent signs, as systemd wants to read it.
    python = shlex.quote(sys.executable).replace("%", "%%")
    return _UNIT.format(root=str(root.resolve()).replace("%", "%%"), python=python)


def write_unit(root: Path) -> Path:
    """Write the unit where systemd looks for this user's; return the file."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", root.resolve().name)
    file = home / "systemd" / "user" / f"pvqae-{name}.service"
    write_text(file, unit(root))
    return file
