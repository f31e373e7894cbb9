"""What the commands of `python -m flows` share."""

import atexit
import logging
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
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout, for programs; all else goes to stderr.")]


def project() -> Path:
    """Return the project's folder, with the environment of all that it starts set. Raises `ConfigError` outside one."""
    from flows.core import environment  # hashes and sockets: not for --help

    root = project_root()
    environment.prepare(root)
    return root


def guarded_server() -> Callable[[], None]:
    """Start a reaper for this process, and Prefect's server where none is known.

    Call this before anything imports Prefect, and what it returns after that, before Prefect's first use: it waits for
    the server. The server ends before the reaper does.
    """
    from flows.adapters import prefect_server
    from flows.core.processes import ProcessReaper
    from pvqae.core import progress

    atexit.register(ProcessReaper().close)  # a command that is killed leaves nothing behind
    wait = prefect_server.begin()

    def ready() -> None:
        _no_tracebacks()
        with progress.working("starting Prefect's server"):
            wait()

    return ready


def project_root() -> Path:
    """Return the project's folder. Raises `ConfigError` outside one."""
    root = find_root(Path.cwd())
    if root is None:
        raise ConfigError(f"{Path.cwd()}: expected params.yaml and dvc.yaml here or above; run in the project's folder")
    return root


def registry(root: Path, strict: bool = True) -> Any:
    """Open the registry of the project's versions.

    With `strict` an invalid params.yaml raises `ConfigError`; commands that show or take back only warn of it.
    """
    from flows.adapters.registry import open_registry
    from pvqae.core import config

    params, wrong = config.usable(root / "params.yaml")
    if wrong and strict:
        raise ConfigError(wrong)
    found, uri = open_registry(root, params.flow.tracking_uri)
    if wrong:
        print(f"{wrong}\nlooking at {uri} all the same", file=sys.stderr)
    return found


def _without_tracebacks(record: logging.LogRecord) -> bool:
    """Filter the traceback out of a log record whose error the command line prints anyway."""
    if record.exc_info and isinstance(record.exc_info[1], PvqaeError):
        record.exc_info = None
    return True


def _no_tracebacks() -> None:
    """Install the filter; to be called once Prefect is imported."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_tracebacks)
