"""What the two command lines share: errors as a user reads them, exit codes, tables, JSON."""

import atexit
import contextlib
import json
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from pvqae import __version__
from pvqae.core.errors import ConfigError, DataError, PvqaeError, ValidationFailed
from pvqae.core.layout import Layout

if TYPE_CHECKING:  # both take longer to import than `--help` may
    from rich.console import Console

    from pvqae.core.config import Params

FAILED, BAD_INPUT, INSUFFICIENT, INTERRUPTED = 1, 2, 3, 130
_LONGEST = 500  # characters of another library's error that are shown
_PIPED = 500  # columns of a table that no terminal shows: its reader can cut it


def _exit_code(error: PvqaeError) -> int:
    """Return 2 if the user has to correct the input, 1 if something failed or was refused."""
    bad = isinstance(error, ConfigError | DataError) and not isinstance(error, ValidationFailed)
    return BAD_INPUT if bad else FAILED


@contextmanager
def _explained() -> Iterator[None]:
    """Print errors that a user can repair as they are, without a traceback."""
    try:
        yield
    except PvqaeError as error:
        print(*filter(None, (f"error: {error}", _full_disk(error))), sep="\n", file=sys.stderr)
        raise typer.Exit(_exit_code(error)) from None
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from where it was", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, TyperException):
        raise
    except Exception as error:
        if not (said := _full_disk(error)):
            raise
        print(f"error: {type(error).__name__}: {str(error)[:_LONGEST]}\n{said}", file=sys.stderr)
        raise typer.Exit(FAILED) from None


def _full_disk(error: Exception) -> str:
    from pvqae.core import errors  # not for `--help`

    return errors.words(error)


class CliGroup(TyperGroup):
    """A command line whose commands may raise `PvqaeError`."""

    def invoke(self, ctx: Any) -> Any:
        warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # we refuse it ourselves
        with _explained():
            return super().invoke(ctx)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"pvqae {__version__}")
        raise typer.Exit


def with_version(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Give a command line the option --version, as its callback."""


def workspace() -> "tuple[Layout, Params]":
    """Return the files and the params of the current folder. Raises `ConfigError` if it is no project."""
    from pvqae.core import config

    params = config.load("params.yaml")
    return Layout(Path.cwd(), params.data.name), params


def leave(code: str | int | None) -> NoReturn:
    """End the process now: to take the libraries apart, object by object, is half a second a stage, one and a half a
    flow.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter would: threads first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads any more
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def console() -> "Console":
    """Return a console as wide as the terminal; without a terminal, wide enough that no table is squeezed."""
    from rich.console import Console

    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if narrow else Console(width=_PIPED)


@contextmanager
def quiet(as_json: bool) -> Iterator[None]:
    """Send all that is printed inside to stderr with `as_json`, so that the JSON is alone on stdout."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def to_json(value: Any) -> str:
    """Return JSON of dataclasses, paths, times (ISO 8601) and figures; a figure that is no number (NaN) is null."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy
        return _plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
