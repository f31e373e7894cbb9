"""Commands that make versions: train, retrain, verify, experiment."""

import contextlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import Json, Overrides, ParamsFile, guarded_server, project, registry
from pvqae.cli.console import FAILED, console, quiet, to_json
from pvqae.core.errors import PvqaeError

app = typer.Typer()
PANEL = "From images to champions"


class Trigger(StrEnum):
    manual = "manual"
    schedule = "schedule"
    samples = "samples"
    drift = "drift"


@app.command(
    epilog="Example: python -m flows train --set data.source=mvtec --set data.root=~/mvtec --set train.steps=100",
    rich_help_panel=PANEL,
)
def train(
    params: ParamsFile = "",
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
    reason: Annotated[str, typer.Option(help="Why this run is; kept with every version it registers.")] = "asked for",
    warm: Annotated[bool, typer.Option("--warm", help="Go on from the champions' weights, in fewer steps.")] = False,
    as_json: Json = False,
) -> None:
    """Train, calibrate, evaluate and register every class; only what changed since the last run is done.

    Ends with a table and the commands that open the report, MLflow and Prefect.
    """
    with quiet(as_json):
        root = project()
        ready = guarded_server()
        prepare_database(root, params, overrides)
        from flows.train import summary
        from flows.train.train import train as flow

        ready()
        result = flow(str(root), params, tuple(overrides), "manual", reason, warm)
    print(to_json(result)) if as_json else show(result, summary)


def prepare_database(root: Path, params: str, overrides: list[str]) -> None:
    """Begin with the project's own tracking database, if runs go there, while everything else starts."""
    from flows.adapters import servers
    from flows.workspace import choices

    with contextlib.suppress(PvqaeError):  # the flow says it
        setting = choices.choose(root, params, tuple(overrides)).params.flow.tracking_uri
        if setting == "auto" and not os.environ.get("MLFLOW_TRACKING_URI"):
            servers.prepare_ahead(root)


@app.command(
    epilog="Example: python -m flows retrain --dataset parts --set landing.url=s3://landing/parts",
    rich_help_panel=PANEL,
)
def retrain(
    dataset: Annotated[str, typer.Option(help="A dataset that was trained before, with its params of then.")] = "",
    params: ParamsFile = "",
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
    force: Annotated[str, typer.Option(metavar="REASON", help="Train whatever the rules say, for this reason.")] = "",
    trigger: Annotated[Trigger, typer.Option(help="What caused this run; kept with every version.")] = Trigger.manual,
    drift: Annotated[str, typer.Option(metavar="WHAT", help="What drifted: a reason to train.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come in and be decided.")] = False,
    as_json: Json = False,
) -> None:
    """Take in the images that arrived at landing.url, decide with reasons whether to train, train, ask the gate.

    Bad files go to .pvqae/arrivals/DATASET/quarantine, doubtful ones to .pvqae/review/DATASET; each with a list.
    """
    with quiet(as_json):
        root = project()
        ready = guarded_server()
        from flows.retrain.retrain import retrain as flow
        from flows.train import summary

        ready()
        result = flow(str(root), params, tuple(overrides), trigger.value, force, drift, dry_run, dataset)
    if as_json:
        print(to_json(result))
        return
    print(*result.lines, sep="\n")
    if result.trained:
        show(result.trained, summary)


def show(result: Any, summary: Any) -> None:
    from flows.adapters import prefect_server

    screen = console()
    screen.print(summary.table(result))
    for line in summary.sentences(result):
        screen.print(line, style="bold red" if line.startswith("NOT REGISTERED") else None, highlight=False)
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    for purpose, command in summary.commands(result, prefect_server.lasting(os.environ), opener):
        screen.print(f"{purpose + ':':18}{command}", soft_wrap=True, highlight=False)


@app.command(epilog="Example: python -m flows verify pvqae-demo-brick 1", rich_help_panel=PANEL)
def verify(
    name: Annotated[str, typer.Argument(help="The registered model, pvqae-DATASET-CLASS.")],
    version: Annotated[str, typer.Argument(help="Its version.")],
    as_json: Json = False,
) -> None:
    """Rebuild a version from its lineage in a clean clone and compare. Exit code 0: the same bundle, or scores within
    the tolerance of the params; 1: not.
    """
    with quiet(as_json):
        root = project()
        from flows.versions import verify as verification

        found = verification.run(root, name, version, lambda line: print(line, flush=True))
    if as_json:
        print(to_json(found))
    else:
        console().print(verification.table(found))
        print(verification.sentence(found))
    if not found.accepted:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: python -m flows experiment lambda", rich_help_panel="The method")
def experiment(
    name: Annotated[str, typer.Argument(help="An experiment's name, all, or list.")],
    quick: Annotated[bool, typer.Option("--quick", help="The demo only, tiny; its numbers mean nothing.")] = False,
    data: Annotated[str, typer.Option(help="Folder with mvtec and mtsd; default $PVQAE_DATASETS.")] = "",
) -> None:
    """Answer an open question of the method by numbers: a page in docs/experiments. Run again to go on after a kill."""
    from flows.experiments import run as experiments

    if name == "list":
        print("\n".join(experiments.listing()))
        return
    root = project()
    for page in experiments.run(root, name, registry(root), quick, data):
        print(page)
