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

BAD_INPUT, FAILED, INSUFFICIENT, INTERRUPTED = 2, 1, 3, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Flows of pvqae: what touches DVC, MLflow or Prefect.",
)
data = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Datasets and their versions.")
app.add_typer(data, name="data")
promotion = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Which version is champion.")
app.add_typer(promotion, name="promote")
services = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Real servers on this machine.")
app.add_typer(services, name="services")
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one param.")]


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
    root = project_root()
    environment.prepare(root)
    return root


def project_root() -> Path:
    root = environment.find_root(Path.cwd())
    if root is None:
        raise ConfigError(f"{Path.cwd()}: expected params.yaml and dvc.yaml here or above; run in the project's folder")
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
    warm: Annotated[bool, typer.Option("--warm", help="Go on from the champions' weights, in fewer steps.")] = False,
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
        result = flow(str(root), params, tuple(set_), "manual", reason, warm)
        show(result, summary)


class Trigger(StrEnum):
    manual = "manual"
    schedule = "schedule"
    samples = "samples"
    drift = "drift"


@app.command(epilog="Example: python -m flows retrain --dataset parts --set landing.url=s3://landing/parts")
def retrain(
    dataset: Annotated[str, typer.Option(help="A dataset that was trained before, with its params of then.")] = "",
    params: Annotated[str, typer.Option(help="A params file instead of the project's params.yaml.")] = "",
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one param; may be repeated.")
    ] = [],  # noqa: B006  # typer reads the default
    force: Annotated[str, typer.Option(metavar="REASON", help="Train whatever the rules say, for this reason.")] = "",
    trigger: Annotated[Trigger, typer.Option(help="What caused this run; kept with every version.")] = Trigger.manual,
    drift: Annotated[str, typer.Option(metavar="WHAT", help="What drifted: a reason to train.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come in and be decided.")] = False,
) -> None:
    """Take in the images that arrived at landing.url, decide with reasons whether to train, train, ask the gate.

    Bad files go to .pvqae/arrivals/DATASET/quarantine, doubtful ones to .pvqae/review/DATASET; each with a list.
    """
    with explained():
        root = project()
        from flows import summary
        from flows.supervise import Guard

        atexit.register(Guard().close)
        from flows.retrain import retrain as flow

        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(without_tracebacks)
        result = flow(str(root), params, tuple(set_), trigger.value, force, drift, dry_run, dataset)
        for line in result.lines:
            print(line)
        if result.trained:
            show(result.trained, summary)


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


DATASET = typer.Argument(help="The dataset's name.")
CLASS = typer.Argument(metavar="CLASS", help="The class of the model pvqae-DATASET-CLASS.")


@promotion.command("run", epilog="Example: python -m flows promote run demo brick --reason 'new lamp'")
def promote_run(
    dataset: Annotated[str, DATASET],
    category: Annotated[str, CLASS],
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "asked for",
    override: Annotated[str, typer.Option(help="Promote whatever the rules say, for this reason.")] = "",
) -> None:
    """Judge the challenger against the champion on the frozen gate images; the alias moves if every rule is kept.

    Exit code 0: promoted, 1: refused, 3: too few gate images to tell.
    """
    with explained():
        root = project()
        from flows import lineage, promote

        verdict = promote.run(root, dataset, category, trigger="manual", reason=reason, override=override or None)
        for line in verdict.lines:
            print(line)
        print(promote.summary(lineage.model_name(dataset, category), verdict))
    if not verdict.promoted:
        raise typer.Exit(INSUFFICIENT if verdict.outcome == "insufficient" else FAILED)


@promotion.command("log")
def promote_log(
    dataset: Annotated[str, typer.Argument(help="Only of this dataset.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Every entry whole, for programs.")] = False,
) -> None:
    """Every move of an alias: when, who, from which version to which, why, on what verdict."""
    with explained():
        root = project()
        from flows import promotions, steps
        from pvqae import config

        registry, _ = steps.tracker(root, config.load(root / "params.yaml").flow.tracking_uri)
        log = {name: registry.promotions(name) for name in registry.models(f"pvqae-{dataset}")}
        print(promotions.as_json(log)) if as_json else Console().print(promotions.table(log))


@promotion.command(
    "rollback", epilog="Example: python -m flows promote rollback demo brick --reason 'misses scratches'"
)
def promote_rollback(
    dataset: Annotated[str, DATASET],
    category: Annotated[str, CLASS],
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")],
) -> None:
    """Restore the champion before the present one. The gate does not promote the one taken back again."""
    with explained():
        root = project()
        from flows import lineage, promotions, steps
        from pvqae import config

        registry, _ = steps.tracker(root, config.load(root / "params.yaml").flow.tracking_uri)
        name = lineage.model_name(dataset, category)
        entry = promotions.rollback(registry, root, dataset, name, reason)
        print(f"{name}: champion is version {entry.to_version} again, version {entry.from_version} was taken back")


@promotion.command("power")
def promote_power(
    draws: Annotated[int, typer.Option(help="Simulated gates per line.")] = 500,
) -> None:
    """By simulation with the project's limits: how surely the gate decides, by the number of parts at it."""
    with explained():
        root = project_root()
        from flows import gate_power
        from pvqae import config

        Console().print(gate_power.table(config.load(root / "params.yaml").gate, draws))


@app.command(epilog="Example: python -m flows verify pvqae-demo-brick 1")
def verify(
    name: Annotated[str, typer.Argument(help="The registered model, pvqae-DATASET-CLASS.")],
    version: Annotated[str, typer.Argument(help="Its version.")],
) -> None:
    """Rebuild a version from its lineage in a clean clone and compare. Exit code 0: the same bundle, or scores within
    the tolerance of the params; 1: not.
    """
    with explained():
        root = project()
        from flows import verify as verification

        found = verification.run(root, name, version, lambda line: print(line, flush=True))
        Console().print(verification.table(found))
        print(verification.sentence(found))
    if not found.accepted:
        raise typer.Exit(FAILED)


@services.command("up")
def services_up(overrides: Overrides = []) -> None:  # noqa: B006  # typer reads the default
    """Start PostgreSQL, S3, MLflow, Prefect and a worker, or what of them is not healthy; flows then use them."""
    with explained():
        from flows.services import control, look, table

        root = project_root()
        settings = table.settings(root, tuple(overrides))
        control.up(root, settings)
        table.show(look.status(root, settings))


@services.command("down")
def services_down() -> None:
    """End them and all that they started; flows use what is built in again. Data and keys stay."""
    with explained():
        from flows.services import control, table

        root = project_root()
        control.down(root, table.running(root))


@services.command("status")
def services_status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """A row for each: pid, port, health, memory, log. Exit code 1 when one is not healthy."""
    with explained():
        from flows.services import look, table

        root = project_root()
        found = look.status(root, table.running(root))
        table.show(found, as_json)
        if any(item.health != "healthy" for item in found):
            raise typer.Exit(FAILED)


@services.command("logs")
def services_logs(
    name: Annotated[str, typer.Argument(help="postgres | s3 | prefect | mlflow | worker")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of its last lines.")] = 50,
) -> None:
    """The end of a service's log."""
    with explained():
        from flows.services import look, table

        root = project_root()
        print(look.log(root, table.running(root), name, lines))


@app.command(epilog="Example: python -m flows experiment lambda")
def experiment(
    name: Annotated[str, typer.Argument(help="An experiment's name, all, or list.")],
    quick: Annotated[bool, typer.Option("--quick", help="The demo only, tiny; its numbers mean nothing.")] = False,
    data: Annotated[str, typer.Option(help="Folder with mvtec and mtsd; default $PVQAE_DATASETS.")] = "",
) -> None:
    """Answer an open question of the method by numbers: a page in docs/experiments. Run again to go on after a kill."""
    with explained():
        from flows.experiments import run as experiments

        if name == "list":
            print("\n".join(experiments.listing()))
            return
        root = project()
        from flows.steps import tracker
        from pvqae import config

        registry, _ = tracker(root, config.load(root / "params.yaml").flow.tracking_uri)
        for page in experiments.run(root, name, registry, quick, data):
            print(page)


MODEL_NAME = typer.Argument(metavar="NAME@ALIAS", help="pvqae-DATASET-CLASS@champion, or a version's number.")
SOURCE = typer.Argument(help="A folder of images, or s3://bucket/prefix.")


def scored(name: str, source: str, out: str, heatmaps: bool, drift: bool) -> Any:
    """Run the score flow and print what it came to."""
    root = project()
    from flows.score import score as flow

    for logger in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(logger).addFilter(without_tracebacks)
    result = flow(str(root), name, source, out, heatmaps, drift)
    for line in result.lines:
        print(line)
    return result


@app.command(epilog="Example: python -m flows score pvqae-demo-brick@champion s3://camera/today --heatmaps")
def score(
    name: Annotated[str, MODEL_NAME],
    source: Annotated[str, SOURCE],
    out: Annotated[str, typer.Option(help="Another folder than scores/MODEL/SOURCE.")] = "",
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Draw them, too.")] = False,
) -> None:
    """Score a folder or a bucket prefix; only what is new is scored. Exit code 1: some images could not be."""
    with explained():
        result = scored(name, source, out, heatmaps, False)
    if result.found.failed:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: python -m flows drift pvqae-demo-brick@champion s3://camera/today")
def drift(
    name: Annotated[str, MODEL_NAME],
    source: Annotated[str, SOURCE],
    out: Annotated[str, typer.Option(help="Another folder than scores/MODEL/SOURCE.")] = "",
) -> None:
    """Score what is new, then compare all of it with the version's trusted normals; drift sends an event.

    Exit code 0: no drift, 3: drift, 4: too few images or normals to tell.
    """
    with explained():
        result = scored(name, source, out, False, True)
    raise typer.Exit(result.drift.exit_code)


def main(run: Callable[[], None] = app) -> None:
    run()
