"""What was tried, survived and lost: `tests/chaos` records it, `docs/reliability.md` shows it.

`make chaos` runs the trials at their full size and then this module, which prints the table and puts it into the page;
`make test` runs the same trials at a size of seconds, which record nothing. The figures are in git: whoever runs some
trials again renews their rows alone.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flows.experiments.page import markdown
from pvqae.core import runtime
from pvqae.core.files import write_text

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "docs" / "figures" / "chaos"
PAGE = PROJECT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
FULL = os.environ.get("PVQAE_CHAOS") == "full"


@dataclass(frozen=True)
class Figure:
    """A trial's outcome. `tried` = survived + lost; `lost` counts whatever broke the promise that `what` names."""

    name: str  # sorts the table
    what: str
    tried: int
    survived: int
    lost: int
    seconds: float
    note: str = ""
    machine: str = ""


def size(quick: int, full: int) -> int:
    """How much a trial does: `full` under `make chaos`, else `quick`."""
    return full if FULL else quick


def record(figure: Figure) -> None:
    """Keep a full trial's figures for the table; those of a quick one mean nothing."""
    if FULL:
        known = asdict(replace(figure, seconds=round(figure.seconds, 1), machine=machine()))
        write_text(FOLDER / f"{figure.name}.json", json.dumps(known, indent=1) + "\n")


def machine() -> str:
    """What trials run on, as the table says it."""
    bf16 = "with" if runtime._cpu_has_bf16() else "without"
    return f"{os.cpu_count()} cores {bf16} bf16, Python {platform.python_version()}"


def table() -> str:
    found = [Figure(**json.loads(path.read_text("utf-8"))) for path in sorted(FOLDER.glob("*.json"))]
    machines = sorted({figure.machine for figure in found})
    return "\n\n".join(_of(name, [figure for figure in found if figure.machine == name]) for name in machines)


def _of(machine: str, found: list[Figure]) -> str:
    """The rows of one kind of machine."""
    heads = ("trial", "tried", "survived", "lost", "seconds", "")
    rows = ([f.what, str(f.tried), str(f.survived), str(f.lost), f"{f.seconds:.0f}", f.note] for f in found)
    return "\n".join([f"On {machine}:", "", *markdown(heads, rows)])


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(PAGE, f"{before}{BEGIN}\nPrinted by `make chaos`.\n\n{table()}\n{END}{after}")
    print(table())


if __name__ == "__main__":
    main()
