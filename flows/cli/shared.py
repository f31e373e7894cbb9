"""What the commands of `python -m flows` share."""

import atexit
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pvqae.core.errors import ConfigError, PvqaeError
from pvqae.core.layout import find_root

Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one param; may be repeated.")
]
ParamsFile = Annotated[str, typer.Option(help="A params file instead of the project's params.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="JSON alone on stdout, for programs; all else goes to stderr.")]
Dataset = Annotated[str, typer.Argument(help="The dataset's name.")]
Class = Annotated[str, typer.Argument(metavar="CLASS", help="The class of the model pvqae-DATASET-CLASS.")]


def project() -> Path:
    """The project that the command is run in, with the environment of what it starts set."""
    from flows.core import environment  # hashes and sockets: not for --help

    root = project_root()
    environment.prepare(root)
    return root


def guarded_server() -> Callable[[], None]:
    """A reaper for this process, and Prefect's server where none is known. What is returned waits for the latter, and
    is to be called when Prefect is imported, before its first use.

    To be called before anything imports Prefect. The server is ended before the reaper, in the reverse order.
    """
    from flows.adapters import prefect_server
    from flows.core.processes import ProcessReaper

    atexit.register(ProcessReaper().close)  # a command that is killed leaves nothing behind
    wait = prefect_server.begin()

    def ready() -> None:
        no_tracebacks()
        wait()

    return ready


def project_root() -> Path:
    root = find_root(Path.cwd())
    if root is None:
        raise ConfigError(f"{Path.cwd()}: expected params.yaml and dvc.yaml here or above; run in the project's folder")
    return root


def registry(root: Path, strict: bool = True) -> Any:
    """The registry where the project's versions are. Without `strict` an error in params.yaml is told of only: for
    commands that show or take back."""
    from flows.adapters.registry import open_registry
    from pvqae.core import config

    params, wrong = config.usable(root / "params.yaml")
    if wrong and strict:
        raise ConfigError(wrong)
    found, uri = open_registry(root, params.flow.tracking_uri)
    if wrong:
        print(f"{wrong}\nlooking at {uri} all the same", file=sys.stderr)
    return found


def notifier() -> Any:
    """Who tells Prefect. Raises `ConfigError` without a server."""
    from flows.adapters.notify import Http

    if not (api := os.environ.get("PREFECT_API_URL", "")):
        raise ConfigError("PREFECT_API_URL: expected a Prefect server, found none; run: python -m flows services up")
    return Http(api)


def without_tracebacks(record: logging.LogRecord) -> bool:
    """A log filter: what the door prints needs no traceback in the log."""
    if record.exc_info and isinstance(record.exc_info[1], PvqaeError):
        record.exc_info = None
    return True


def no_tracebacks() -> None:
    """To be called once Prefect is imported."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(without_tracebacks)
