"""The command line `python -m flows`: a door without logic."""

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows import environment
from pvqae.errors import ConfigError, DataError, PvqaeError, ValidationFailed

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Flows of pvqae: what touches DVC, MLflow or Prefect.",
)
data = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Datasets and their versions.")
app.add_typer(data, name="data")


class Link(StrEnum):
    copy = "copy"
    hardlink = "hardlink"


@contextmanager
def explained() -> Iterator[None]:
    """Errors that a user can repair are printed as they are, without a traceback."""
    try:
        yield
    except PvqaeError as error:
        print(f"error: {error}", file=sys.stderr)
        bad = isinstance(error, ConfigError | DataError) and not isinstance(error, ValidationFailed)
        raise typer.Exit(BAD_INPUT if bad else FAILED) from None
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def project() -> Path:
    """The project that the command is run in, with the environment of what it starts set."""
    root = environment.find_root(Path.cwd())
    if root is None:
        raise ConfigError(f"{Path.cwd()}: expected params.yaml and dvc.yaml here or above; run in the project's folder")
    environment.prepare(root)
    return root


def without_tracebacks(record: logging.LogRecord) -> bool:
    """A log filter: what `explained` prints needs no traceback in the log."""
    if record.exc_info and isinstance(record.exc_info[1], PvqaeError):
        record.exc_info = None
    return True


@app.command(
    epilog="Example: python -m flows train --set data.source=mvtec --set data.root=~/mvtec --set train.steps=100"
)
def train(
    params: Annotated[str, typer.Option(help="A params file instead of the project's params.yaml.")] = "",
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one param; may be repeated.")
    ] = [],  # noqa: B006  # typer reads the default
    reason: Annotated[str, typer.Option(help="Why this run is; kept with every version it registers.")] = "asked for",
) -> None:
    """Train, calibrate, evaluate and register every class; only what changed since the last run is done.

    Ends with a table and the commands that open the report, MLflow and Prefect.
    """
    with explained():
        root = project()
        from flows import summary
        from flows.supervise import Guard

        atexit.register(Guard().close)  # before Prefect registers the end of its server, so it runs after that
        from flows.train import train as flow

        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(without_tracebacks)
        result = flow(str(root), params, tuple(set_), "manual", reason)
        show(result, summary)


def show(result: Any, summary: Any) -> None:
    console = Console()
    console.print(summary.table(result))
    for line in summary.sentences(result):
        console.print(line, style="bold red" if line.startswith("NOT REGISTERED") else None, highlight=False)
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    for purpose, command in summary.commands(result, os.environ, opener):
        console.print(f"{purpose + ':':18}{command}", soft_wrap=True, highlight=False)


@data.command("add", epilog="Example: python -m flows data add bottles ~/photos/bottles --source folder")
def data_add(
    name: Annotated[str, typer.Argument(help="The dataset's name: data/raw/NAME.")],
    root: Annotated[Path, typer.Argument(help="The folder of the original images; it is not touched.")],
    source: Annotated[str, typer.Option(help="Its layout; checked when given. mvtec | btad | mtsd | folder")] = "",
    link: Annotated[
        Link, typer.Option(help="hardlink saves the space of a copy, but makes the originals read-only.")
    ] = Link.copy,
) -> None:
    """Bring a dataset into the project as a DVC version; a dataset that changed becomes a new version."""
    with explained():
        folder = project()
        from flows.data import add

        print(add(folder, name, root, source, link.value))


def main(run: Callable[[], None] = app) -> None:
    run()
