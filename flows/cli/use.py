"""Commands that use versions: score, drift, serve, review."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import Json, Overrides, guarded_server, project
from pvqae.cli.console import FAILED, quiet, to_json

app = typer.Typer()
PANEL = "Versions in use"
Model = Annotated[
    str, typer.Argument(metavar="NAME@ALIAS", help="pvqae-DATASET-CLASS@champion, or a version's number.")
]
Source = Annotated[str, typer.Argument(help="A folder of images, or s3://bucket/prefix.")]
Out = Annotated[str, typer.Option(help="Another folder than scores/MODEL/SOURCE.")]


def scored(name: str, source: str, out: str, heatmaps: bool, drift: bool, as_json: bool) -> Any:
    """Run the score flow and print what it came to."""
    with quiet(as_json):
        root = project()
        ready = guarded_server()
        from flows.serving.score import score as flow

        ready()
        result = flow(str(root), name, source, out, heatmaps, drift)
    print(to_json(result)) if as_json else print(*result.lines, sep="\n")
    return result


@app.command(
    epilog="Example: python -m flows score pvqae-demo-brick@champion s3://camera/today --heatmaps",
    rich_help_panel=PANEL,
)
def score(
    name: Model,
    source: Source,
    out: Out = "",
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Draw them, too.")] = False,
    as_json: Json = False,
) -> None:
    """Score a folder or a bucket prefix; only what is new is scored. Exit code 1: some images could not be."""
    if scored(name, source, out, heatmaps, False, as_json).found.failed:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: python -m flows drift pvqae-demo-brick@champion s3://camera/today", rich_help_panel=PANEL)
def drift(name: Model, source: Source, out: Out = "", as_json: Json = False) -> None:
    """Score what is new, then compare all of it with the version's trusted normals; drift sends an event.

    Exit code 0: no drift, 3: drift, 4: too few images or normals to tell.
    """
    raise typer.Exit(scored(name, source, out, False, True, as_json).drift.exit_code)


@app.command(epilog="Example: python -m flows serve pvqae-demo-brick@champion --port 8080", rich_help_panel=PANEL)
def serve(
    name: Model,
    host: Annotated[str | None, typer.Option(help="Another than service.host; wants a token.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Another than service.port.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that callers must send; else PVQAE_TOKEN, if set.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
) -> None:
    """Score images over HTTP with the version that an alias names; when the alias moves, with the new one.

    The version that answers goes on answering when the new one is damaged, or the registry is down.
    """
    root = project()
    from flows.serving import serve as serving

    serving.serve(
        root, name, host=host, port=port, token_file=token_file, overrides=tuple(overrides),
        tell=lambda line: print(line, flush=True),
    )  # fmt: skip


@app.command(epilog="Example: python -m flows review --dataset parts", rich_help_panel=PANEL)
def review(
    dataset: Annotated[str, typer.Option(help="A dataset that was trained before; default the project's own.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="No page: bring the labels into the dataset.")] = False,
    host: Annotated[str, typer.Option(help="Any other than this machine's own needs the printed token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8090,
    most: Annotated[int, typer.Option(min=1, help="Scored images per queue, at most.")] = 100,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Label images on a local page with keys: held back ones, those nearest the threshold, false alarms.

    Apply makes one DVC version of the dataset and a commit that says who labelled what when; retrain counts them.
    """
    root = project()
    from flows.review import review as page

    params = page.params_for(root, dataset)
    if not apply:
        page.serve(root, params, host, port, most, browser, lambda text: print(text, flush=True))
        return
    done = page.apply(root, params, lambda busy: print(f"{busy}: waiting for its end", flush=True))
    for line in done.lines:
        print(line)
