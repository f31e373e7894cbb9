"""The command line `python -m flows`: all commands in one application."""

from collections.abc import Callable

import typer

from flows.cli import laboratory, machines, promotion, training, use
from pvqae.cli.console import CliGroup, leave, with_version

# No completion: a shell completes the names of programs, and this is `python` with an option. `pvqae` has it.
app = typer.Typer(
    cls=CliGroup,
    callback=with_version,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Flows of pvqae: what touches DVC, MLflow or Prefect.",
    epilog="Example: python -m flows train. Exit codes: docs/operations.md.",
)
app.add_typer(training.app)
app.add_typer(laboratory.app)
app.add_typer(training.data, name="data", rich_help_panel=training.PANEL)
app.add_typer(promotion.promote, name="promote", rich_help_panel=training.PANEL)
app.add_typer(use.app)
app.add_typer(promotion.app)
app.add_typer(machines.app)
app.add_typer(laboratory.bench, name="bench", rich_help_panel=training.PANEL)
app.add_typer(machines.services, name="services", rich_help_panel=machines.PANEL)


def main(run: Callable[[], None] = app) -> None:
    """Run the command line and leave with its exit code."""
    try:
        run()
    except SystemExit as ended:
        leave(ended.code)
