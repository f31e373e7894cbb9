"""`python -m flows data`: datasets and their versions."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import project

app = typer.Typer(no_args_is_help=True, help="Datasets and their versions.")


class Link(StrEnum):
    copy = "copy"
    hardlink = "hardlink"


@app.command("add", epilog="Example: python -m flows data add bottles ~/photos/bottles --source folder")
def add(
    name: Annotated[str, typer.Argument(help="The dataset's name: data/raw/NAME.")],
    root: Annotated[Path, typer.Argument(help="The folder of the original images; it is not touched.")],
    source: Annotated[str, typer.Option(help="Its layout; checked when given. mvtec | btad | mtsd | folder")] = "",
    link: Annotated[
        Link, typer.Option(help="hardlink saves the space of a copy, but makes the originals read-only.")
    ] = Link.copy,
) -> None:
    """Bring a dataset into the project as a DVC version; a dataset that changed becomes a new version."""
    folder = project()
    from flows.upkeep.data import add as flow

    print(flow(folder, name, root, source, link.value))
