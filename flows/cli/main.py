"""The command line `python -m flows`: declare the commands, without logic of their own."""

from collections.abc import Callable

import typer

from flows.cli import bench, data, gc, machines, promotion, services, training, use
from pvqae.cli.console import Door, leave

# No completion: a shell completes the names of programs, and this is `python` with an option. `pvqae` has it.
app = typer.Typer(
    cls=Door,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Flows of pvqae: what touches DVC, MLflow or Prefect.",
    epilog="Example: python -m flows train. Exit codes: docs/operations.md.",
)
app.add_typer(training.app)
app.add_typer(data.app, name="data", rich_help_panel=training.PANEL)
app.add_typer(promotion.app, name="promote", rich_help_panel=training.PANEL)
app.add_typer(use.app)
app.add_typer(machines.app)
app.add_typer(gc.app)
app.add_typer(bench.app, name="bench", rich_help_panel=training.PANEL)
app.add_typer(services.app, name="services", rich_help_panel=machines.PANEL)


def main(run: Callable[[], None] = app) -> None:
    try:
        run()
    except SystemExit as ended:
        leave(ended.code)
