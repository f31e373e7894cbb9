"""`pvqae bench`: measure what the documentation claims."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure what the documentation claims.")


@app.command("serve", epilog="Example: pvqae bench serve models/demo/brick/bundle data/raw/demo/brick/test")
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images, that are sent in turn.")],
    requests: Annotated[int, typer.Option(min=1, help="How many of each kind.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="At once, beside one alone.")] = 4,
) -> None:
    """Latency over HTTP: a service of its own on this machine, one client alone, then several at once."""
    from pvqae.serving import load_test as latency

    latency.show(latency.bench(bundle, images, requests, clients))
