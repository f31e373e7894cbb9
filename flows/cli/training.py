"""Commands that make datasets and versions: data add, train, retrain, verify."""

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.shared import Json, Overrides, ParamsFile, guarded_server, project
from pvqae.cli.console import FAILED, console, quiet, to_json
from pvqae.core.errors import PvqaeError

if TYPE_CHECKING:
    from flows.train.summary import Summary
    from pvqae.core.config import Params

app = typer.Typer()
data = typer.Typer(no_args_is_help=True, help="Datasets and their versions.")
PANEL = "From images to champions"


@app.command(
    "train",
    epilog="Example: python -m flows train --set data.source=mvtec --set data.root=~/mvtec --set train.steps=100",
    rich_help_panel=PANEL,
)
def _train(
    params: ParamsFile = "",
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
    reason: Annotated[str, typer.Option(help="Why you train; kept with every version it registers.")] = "asked for",
    warm: Annotated[bool, typer.Option("--warm", help="Start from the champions' weights, with fewer steps.")] = False,
    as_json: Json = False,
) -> None:
    """Train, calibrate, evaluate and register every class; only what changed since the last run is done.

    Print a table and the commands that open the report, MLflow and Prefect.
    """
    with quiet(as_json):
        root = project()
        settings = _settings(root, params, overrides)
        _check_source(root, settings)
        ready = guarded_server()
        _prepare_database(root, settings)
        from flows.train.summary import ClassesFailed
        from flows.train.train import train as flow

        ready()
        failure = None
        try:
            result = flow(str(root), params, tuple(overrides), "manual", reason, warm)
        except ClassesFailed as error:
            result, failure = error.summary, error
    print(to_json(result)) if as_json else _show(result)
    if failure:
        raise failure


def _settings(root: Path, params: str, overrides: list[str]) -> "Params":
    """Return the params of a run before anything is started for it: what is wrong with them is told at once."""
    from flows.workspace import workspace

    return workspace.choose(root, params, tuple(overrides)).params


def _check_source(root: Path, params: "Params") -> None:
    """Raise `DataError` where data.root can't be a dataset of the params' layout, or there is none at all."""
    from flows.adapters import versioning
    from flows.core import classes
    from pvqae.core.layout import Layout

    raw = Layout(root, params.data.name).raw
    if params.data.root and params.data.source != "demo":
        place = Path(params.data.root).expanduser()
        versioning.check_source(place)
        classes.there(params, place)
    elif not (raw.is_dir() or raw.with_name(f"{raw.name}.dvc").exists()):
        classes.there(params, raw)


def _prepare_database(root: Path, params: "Params") -> None:
    """Create the project's own tracking database, if runs go there, while everything else starts: it takes seconds.

    Whoever needs the database asks for it all the same, waits, and hears of an error.
    """
    from flows.adapters import tracking

    def work() -> None:
        with contextlib.suppress(PvqaeError):
            tracking.own_database(root)

    if params.flow.tracking_uri == "auto" and not os.environ.get("MLFLOW_TRACKING_URI"):
        threading.Thread(target=work, daemon=True).start()


@app.command(
    "retrain",
    epilog="Example: python -m flows retrain --dataset parts --set landing.url=s3://landing/parts",
    rich_help_panel=PANEL,
)
def _retrain(
    dataset: Annotated[
        str, typer.Option(help="A dataset that was trained before, with the params of that training.")
    ] = "",
    params: ParamsFile = "",
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
    force: Annotated[str, typer.Option(metavar="REASON", help="Train whatever the rules say, with this reason.")] = "",
    trigger: Annotated[
        Literal["manual", "schedule", "samples", "drift"],
        typer.Option(help="What caused this run; kept with every version."),
    ] = "manual",
    drift: Annotated[str, typer.Option(metavar="WHAT", help="What drifted: a reason to train.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would come in and be decided.")] = False,
    as_json: Json = False,
) -> None:
    """Take in the images that arrived at landing.url and decide, with reasons, whether to train and run the gate.

    Bad files go to .pvqae/arrivals/DATASET/quarantine, doubtful ones to .pvqae/review/DATASET, each with a list.
    """
    with quiet(as_json):
        root = project()
        from flows.retrain import watch

        settings = _settings(root, params or watch.params_of(root, dataset), overrides)
        watch.refuse_made(settings)
        watch.landing_area(root, settings)  # an address of a kind that is not known
        ready = guarded_server()
        from flows.retrain.retrain import retrain as flow

        ready()
        result = flow(str(root), params, tuple(overrides), trigger, force, drift, dry_run, dataset)
    if as_json:
        print(to_json(result))
        return
    print(*result.lines, sep="\n")
    if result.trained:
        _show(result.trained)


def _show(result: "Summary") -> None:
    """Print a training's table, what happened, and what to type next."""
    from flows.adapters import prefect_server

    screen = console()
    screen.print(result.table())
    for line in result.sentences():
        screen.print(line, style="bold red" if line.startswith("NOT REGISTERED") else None, highlight=False)
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    for purpose, command in result.commands(prefect_server.lasting(os.environ), opener):
        screen.print(f"{purpose + ':':18}{command}", soft_wrap=True, highlight=False)


@app.command("verify", epilog="Example: python -m flows verify pvqae-demo-brick 1", rich_help_panel=PANEL)
def _verify(
    name: Annotated[str, typer.Argument(help="The registered model, pvqae-DATASET-CLASS.")],
    version: Annotated[str, typer.Argument(help="Its version.")],
    as_json: Json = False,
) -> None:
    """Rebuild a version from its lineage in a clean clone and compare.

    Exit code 0: the same bundle, or scores within the tolerance of the params; 1: not.
    """
    with quiet(as_json):
        root = project()
        from flows.versions import verify as verification

        found = verification.run(root, name, version, lambda line: print(line, flush=True))
    if as_json:
        print(to_json(found))
    else:
        console().print(found.table())
        print(found.sentence())
    if not found.accepted:
        raise typer.Exit(FAILED)


@data.command("add", epilog="Example: python -m flows data add bottles ~/photos/bottles --source folder")
def _add(
    name: Annotated[str, typer.Argument(help="The dataset's name: data/raw/NAME.")],
    root: Annotated[Path, typer.Argument(help="The folder of the original images, which stay untouched.")],
    source: Annotated[
        str,
        typer.Option(
            help="The folder's layout, checked when given: mvtec | btad | mtsd | folder | table | annotated | visa | "
            "loco | mvtec_ad_2 | mpdd | kolektor | kolektor2 | dagm | real_iad | mvtec_3d"
        ),
    ] = "",
    link: Annotated[
        Literal["copy", "hardlink"],
        typer.Option(help="hardlink saves the space of a copy, but makes the originals read-only."),
    ] = "copy",
) -> None:
    """Bring a dataset into the project as a DVC version; a dataset that changed becomes a new version."""
    folder = project()
    from flows.workspace.workspace import add_dataset as flow

    print(flow(folder, name, root, source, link))
