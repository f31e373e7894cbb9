"""Commands about machines and what starts by itself: doctor, deploy, worker, watch, arrived."""

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import Json, notifier, project
from pvqae.cli.console import console

app = typer.Typer()
PANEL = "Machines, servers, triggers"


@app.command(epilog="Example: python -m flows doctor", rich_help_panel=PANEL)
def doctor(as_json: Json = False) -> None:
    """What is installed, which device, which servers answer, how the project is; what is wrong, and the repair.

    Exit code 1: something is bad.
    """
    from flows.upkeep import doctor as doctors
    from pvqae.cli import checks

    found = doctors.examine(Path.cwd())
    checks.show(found, as_json, console())
    raise typer.Exit(checks.exit_code(found))


@app.command(epilog="Example: python -m flows deploy", rich_help_panel=PANEL)
def deploy() -> None:
    """Register the schedule and the triggers of infra/prefect.yaml at the Prefect server."""
    root = project()
    from flows.machines import worker as deployments
    from pvqae.core import config

    names = deployments.deploy(root, config.load(root / "params.yaml").services)
    print(f"registered at {os.environ['PREFECT_API_URL']}: {', '.join(names)}")


@app.command(epilog="Example: python -m flows worker --pool pvqae-train --device 0", rich_help_panel=PANEL)
def worker(
    pool: Annotated[str, typer.Option(help="The work pool to work for.")] = "pvqae-train",
    name: Annotated[str, typer.Option(help="Of this worker; default: this machine and the folder.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Flow runs at once.")] = 1,
    device: Annotated[str, typer.Option(help="One training at a time on it; the index of a GPU, or any name.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="Of each training; 0: as the params say.")] = 0,
) -> None:
    """Work for a pool with this folder's code and DVC remote, until ended."""
    root = project()
    from flows.machines import worker as workers

    workers.start(root, pool, name or f"{platform.node()}-{root.name}", limit, device, threads)


@app.command(epilog="Example: python -m flows watch", rich_help_panel=PANEL)
def watch() -> None:
    """Look for new images at landing.url, until ended; tell Prefect, which starts a retraining."""
    root = project()
    from flows.retrain import watch as watching

    watching.watch(watching.Watcher(root, notifier(), say))


@app.command(epilog="Example: python -m flows arrived parts --class gravel", rich_help_panel=PANEL)
def arrived(
    dataset: Annotated[str, typer.Argument(help="The dataset's name.")],
    category: Annotated[str, typer.Option("--class", help="The class of which images came.")] = "",
) -> None:
    """Say that new images arrived: what the watcher does by itself. A retraining starts at once."""
    project()
    from flows.retrain import watch as watching

    watching.announce(notifier(), dataset, category)
    print(f"told {os.environ['PREFECT_API_URL']}: {watching.EVENT} for {dataset}")


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk ends no watcher
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), line, flush=True)
