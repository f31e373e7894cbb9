"""How long the two commands take to say what they can do."""

import os
import statistics
import sys
from pathlib import Path

from tests.bench.processes import run
from tests.bench.rows import Row, Size, at_most

COMMANDS = {
    "`pvqae --help`": [str(Path(sys.executable).parent / "pvqae"), "--help"],
    "`python -m flows --help`": [sys.executable, "-m", "flows", "--help"],
}


def imports(size: Size) -> list[Row]:
    return [help_of(name, command, size.of(2, 15)) for name, command in COMMANDS.items()]


def help_of(name: str, command: list[str], repeats: int) -> Row:
    """The first one, which may read from the disk, does not count."""
    costs = [run(command, Path.cwd(), dict(os.environ))[1] for _ in range(repeats + 1)][1:]
    wall = statistics.median(cost.seconds for cost in costs)
    cpu, fastest = statistics.median(cost.cpu for cost in costs), min(cost.seconds for cost in costs)
    floor = at_most(wall, 0.5, " s")
    note = f"median of {repeats}; fastest {fastest:.2f} s, processor time {cpu:.2f} s"
    return Row(name, f"{wall:.2f} s", "", None, *floor, note)
