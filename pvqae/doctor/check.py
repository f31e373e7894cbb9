"""One thing that was looked at, and how a person or a program reads all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pvqae.door import to_json

State = Literal["ok", "warn", "bad"]
COLOURS = {"ok": "green", "warn": "yellow", "bad": "bold red"}


@dataclass(frozen=True)
class Check:
    """`bad`: something fails because of it; `warn`: something is missing that not everybody needs.

    `repair` is a command, or a sentence where no command does it; empty if there is nothing to repair.
    """

    name: str
    state: State
    found: str
    repair: str = ""


def exit_code(checks: Sequence[Check]) -> int:
    """1 if anything is bad."""
    return int(any(check.state == "bad" for check in checks))


def table(checks: Sequence[Check]) -> Table:
    """Repairs stand in a line of their own below what they repair, so that a narrow terminal does not cut them."""
    shown = Table("check", "state", "found, and the repair", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for check in checks:
        said = Text(check.found)
        if check.repair:
            said.append(f"\n→ {check.repair}", style="bold")
        shown.add_row(Text(check.name), Text(check.state, style=COLOURS[check.state]), said)
    return shown


def sentence(checks: Sequence[Check]) -> str:
    """The counts in words."""
    bad, warn = (sum(check.state == state for check in checks) for state in ("bad", "warn"))
    if not bad and not warn:
        return f"{len(checks)} checks, nothing to repair"
    return f"{len(checks)} checks: {bad} bad, {warn} to look at"


def show(checks: Sequence[Check], as_json: bool, screen: Console) -> None:
    """A table and a sentence, or JSON."""
    if as_json:
        print(to_json(checks))
        return
    screen.print(table(checks))
    screen.print(sentence(checks), highlight=False)
