"""The command line `python -m flows`: a door without logic. The commands are in cli_*.py, a file for each panel."""

from collections.abc import Callable

import typer

from flows import cli_data, cli_gc, cli_machines, cli_promote, cli_services, cli_train, cli_use
from pvqae.door import Door, leave

# No completion: a shell completes the names of programs, and this is `python` with an option. `pvqae` has it.
app = typer.Typer(
    cls=Door,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Flows of pvqae: what touches DVC, MLflow or Prefect.",
    epilog="Example: python -m flows train. Exit codes: docs/operations.md.",
)
app.add_typer(cli_train.app)
app.add_typer(cli_data.app, name="data", rich_help_panel=cli_train.PANEL)
app.add_typer(cli_promote.app, name="promote", rich_help_panel=cli_train.PANEL)
app.add_typer(cli_use.app)
app.add_typer(cli_machines.app)
app.add_typer(cli_gc.app)
app.add_typer(cli_services.app, name="services", rich_help_panel=cli_machines.PANEL)


def main(run: Callable[[], None] = app) -> None:
    try:
        run()
    except SystemExit as ended:
        leave(ended.code)
