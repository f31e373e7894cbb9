"""`python -m flows services`: real servers on this machine."""

from typing import Annotated

import typer

from flows.cli.shared import Overrides, project_root
from pvqae.cli.console import FAILED

app = typer.Typer(no_args_is_help=True, help="Real servers on this machine.")


@app.command("up", epilog="Example: python -m flows services up --set services.mlflow_port=5001")
def up(overrides: Overrides = []) -> None:  # noqa: B006  # typer reads the default
    """Start PostgreSQL, S3, MLflow, Prefect and a worker, or what of them is not healthy; flows then use them."""
    from flows.machines import control, service_status

    root = project_root()
    settings = service_status.settings(root, tuple(overrides))
    control.up(root, settings)
    service_status.show(service_status.status(root, settings))


@app.command("down", epilog="Example: python -m flows services down")
def down() -> None:
    """End them and all that they started; flows use what is built in again. Data and keys stay."""
    from flows.machines import control, service_status

    root = project_root()
    control.down(root, service_status.running(root))


@app.command("status", epilog="Example: python -m flows services status --json")
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """A row for each: pid, port, health, memory, log. Exit code 1 when one is not healthy."""
    from flows.machines import service_status

    root = project_root()
    found = service_status.status(root, service_status.running(root))
    service_status.show(found, as_json)
    if any(item.health != "healthy" for item in found):
        raise typer.Exit(FAILED)


@app.command("logs", epilog="Example: python -m flows services logs mlflow -n 20")
def logs(
    name: Annotated[str, typer.Argument(help="postgres | s3 | prefect | mlflow | worker | watcher")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of its last lines.")] = 50,
) -> None:
    """The end of a service's log."""
    from flows.machines import service_status

    root = project_root()
    print(service_status.log(root, service_status.running(root), name, lines))
