"""The services as a person or a program reads them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.services.look import Status, settings_of
from pvqae import config

COLOURS = {"healthy": "green", "not answering": "red", "stopped": "dim"}


def settings(root: Path, overrides: tuple[str, ...] = ()) -> config.Services:
    """The section `services` of the project's params."""
    return config.load(root / "params.yaml", overrides).services


def running(root: Path) -> config.Services:
    """What the services were started with, else what they would be started with: never an error of the params."""
    return settings_of(root, config.usable(root / "params.yaml")[0].services)


def show(found: Sequence[Status], as_json: bool = False) -> None:
    """A table in 80 columns with the logs below it, or JSON."""
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=1))
        return
    table = Table("service", "pid", "port", "health", "MB")
    for item in found:
        health = f"[{COLOURS[item.health]}]{item.health}"
        table.add_row(item.name, str(item.pid or ""), str(item.port or ""), health, str(item.megabytes or ""))
    console = Console()
    console.print(table)
    for item in found:
        console.print(f"{item.name:10}{item.log}", soft_wrap=True, highlight=False)
