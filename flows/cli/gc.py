"""`python -m flows gc`."""

import sys
from typing import Annotated, Any

import typer

from flows.cli.machines import PANEL
from flows.cli.shared import project, registry

app = typer.Typer()


@app.command(epilog="Example: python -m flows gc --keep-days 30", rich_help_panel=PANEL)
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="What was used within so many days stays.")] = 14,
) -> None:
    """Remove what can be made again and nothing refers to: no version, alias, log, running flow or workspace.

    Says what and how much, then asks; without a terminal it only says so, unless --yes.
    """
    root = project()
    from flows.upkeep import gc as collector

    def confirm(plan: Any) -> bool:
        print(*plan.lines, sep="\n")
        if dry_run or yes:
            return yes and not dry_run
        return sys.stdin.isatty() and typer.confirm("Remove them?")

    plan, done = collector.collect(root, registry(root, strict=not dry_run), keep_days, confirm)
    if not plan.items:
        print(*plan.busy, "nothing to remove", sep="\n")
    else:
        print(f"{'removed' if done else 'nothing was removed; would free'} {collector.megabytes(plan.items)} MB")
