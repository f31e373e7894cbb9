"""Commands for machines, servers and triggers: doctor, deploy, worker, watch, arrived, gc, services."""

import contextlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import Json, Overrides, project, project_root, registry
from pvqae.cli.console import FAILED, console, to_json
from pvqae.core.errors import ConfigError

app = typer.Typer()
services = typer.Typer(no_args_is_help=True, help="Start, stop and inspect the servers on this machine.")
PANEL = "Machines, servers, triggers"
_COLOURS = {"healthy": "green", "not answering": "red", "orphaned": "red", "stopped": "dim"}  # by a service's health


@app.command("doctor", epilog="Example: python -m flows doctor", rich_help_panel=PANEL)
def _doctor(
    as_json: Json = False,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load every champion, which takes seconds.")] = True,
) -> None:
    """Check what is installed, the device, the servers and the project; say what is wrong and how to repair it.

    Exit code 1: a problem was found.
    """
    from flows.upkeep import doctor as doctors
    from pvqae.cli import checks

    found = doctors.examine(Path.cwd(), loading=load)
    raise typer.Exit(checks.show(found, as_json, console()))


@app.command("deploy", epilog="Example: python -m flows deploy", rich_help_panel=PANEL)
def _deploy() -> None:
    """Register the schedule and the triggers of infra/prefect.yaml with the Prefect server."""
    root = project()
    from flows.machines import worker as deployments
    from pvqae.core import config

    names = deployments.deploy(root, config.load(root / "params.yaml").services)
    print(f"registered at {os.environ['PREFECT_API_URL']}: {', '.join(names)}")


@app.command("worker", epilog="Example: python -m flows worker --pool pvqae-train --device 0", rich_help_panel=PANEL)
def _worker(
    pool: Annotated[str, typer.Option(help="The work pool to work for.")] = "pvqae-train",
    name: Annotated[str, typer.Option(help="This worker's name; default: the machine and the folder.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of concurrent flow runs.")] = 1,
    device: Annotated[
        str, typer.Option(help="Run one training at a time on this device: a GPU's index, or any name.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads of each training; 0: as the params say.")] = 0,
) -> None:
    """Work for a pool with this folder's code and DVC remote until stopped."""
    root = project()
    from flows.machines import worker as workers

    workers.start(root, pool, name or f"{platform.node()}-{root.name}", limit, device, threads)


@app.command("watch", epilog="Example: python -m flows watch", rich_help_panel=PANEL)
def _watch() -> None:
    """Watch landing.url for new images until stopped; tell Prefect, which starts a retraining."""
    root = project()
    from flows.adapters.prefect_client import HttpCrashes
    from flows.retrain import watch as watching

    notifier = _notifier()
    crashes = HttpCrashes(os.environ["PREFECT_API_URL"], watching.RETRAININGS)
    watching.Watcher(root, notifier, _say, crashes).watch()


@app.command("arrived", epilog="Example: python -m flows arrived parts --class gravel", rich_help_panel=PANEL)
def _arrived(
    dataset: Annotated[str, typer.Argument(help="The dataset's name.")],
    category: Annotated[str, typer.Option("--class", help="The class of the new images.")] = "",
) -> None:
    """Report new images, as the watcher does by itself. A retraining starts at once."""
    root = project()
    from flows.retrain import watch as watching

    watching.Watcher(root, _notifier()).announce(dataset, category)
    print(f"told {os.environ['PREFECT_API_URL']}: {watching.EVENT} for {dataset}")


def _notifier() -> Any:
    """Return the client that sends events to Prefect. Raises `ConfigError` without a server."""
    from flows.adapters.prefect_client import HttpEvents

    if not (api := os.environ.get("PREFECT_API_URL", "")):
        raise ConfigError("PREFECT_API_URL: no Prefect server is set; run: python -m flows services up")
    return HttpEvents(api)


def _say(line: str) -> None:
    """Print a line of the watcher's log."""
    with contextlib.suppress(OSError):  # a log on a full disk ends no watcher
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), line, flush=True)


@app.command("gc", epilog="Example: python -m flows gc --keep-days 30", rich_help_panel=PANEL)
def _gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Keep what was used within this many days.")] = 14,
) -> None:
    """Remove what can be made again and no version, alias, log, running flow or workspace refers to.

    Print what and how much, then ask; without a terminal only print, unless --yes.
    """
    root = project()
    from flows.upkeep import gc as collector

    def confirm(plan: Any) -> bool:
        print(*plan.lines, sep="\n")
        if dry_run or yes:
            return yes and not dry_run
        return sys.stdin.isatty() and typer.confirm("Remove them?")

    plan, done = collector.collect(root, registry(root, strict=not dry_run), keep_days, confirm)
    if not plan.items:
        print(*plan.busy, "nothing to remove", sep="\n")
    else:
        print(f"{'removed' if done else 'nothing was removed; would free'} {plan.megabytes} MB")


@app.command("backup", epilog="Example: python -m flows backup /mnt/safe/plant-2026-12-01.tar", rich_help_panel=PANEL)
def _backup(
    target: Annotated[str, typer.Argument(help="The archive to write: a file, or s3://BUCKET/NAME.")],
    as_json: Json = False,
) -> None:
    """Write all that can't be made again into one checked archive: versions, promotion log, samples, labels, data.

    Secrets, scores and reports are not in it. It is made while no flow works.
    """
    root = project()
    from flows.upkeep import backup
    from pvqae.core.progress import tell

    found = backup.write(root, target, tell)
    print(to_json(found) if as_json else _archive(target, found))


@app.command("restore", epilog="Example: python -m flows restore /mnt/safe/plant-2026-12-01.tar", rich_help_panel=PANEL)
def _restore(
    source: Annotated[str, typer.Argument(help="An archive that `backup` wrote: a file, or s3://BUCKET/NAME.")],
    as_json: Json = False,
) -> None:
    """Bring all of an archive into this project, which has no versions yet: a new clone. All is checked first."""
    root = project()
    from flows.upkeep import backup
    from pvqae.core.progress import tell

    found = backup.read(root, source, tell)
    print(to_json(found) if as_json else _archive(source, found))


def _archive(name: str, facts: Any) -> str:
    """Say in lines what an archive has."""
    count = sum(map(len, facts.versions.values()))
    models = f"{count} versions of {len(facts.versions)} models"
    lines = [f"{name}: {models if facts.registry != 'elsewhere' else 'without the registry'}, made {facts.made}"]
    if facts.lacking:
        lines += [
            f"{facts.lacking} objects that versions name are not in DVC's cache of the project that was backed up, so "
            "not in the archive; what its DVC remote has of them, verify and flows fetch from there"
        ]
    return "\n".join(lines)


def _show_services(found: Sequence[Any]) -> None:
    """Print a table in 80 columns with the logs below it."""
    from rich.table import Table

    table = Table("service", "pid", "port", "health", "MB")
    for item in found:
        health = f"[{_COLOURS[item.health]}]{item.health}"
        table.add_row(item.name, str(item.pid or ""), str(item.port or ""), health, str(item.megabytes or ""))
    screen = console()
    screen.print(table)
    for item in found:
        screen.print(f"{item.name:10}{item.log}", soft_wrap=True, highlight=False)


@services.command("up", epilog="Example: python -m flows services up --set services.mlflow_port=5001")
def _up(overrides: Overrides = []) -> None:  # noqa: B006  # typer reads the default
    """Start PostgreSQL, S3, MLflow, Prefect and a worker where they are not healthy; flows then use them."""
    from flows.machines import control
    from pvqae.core import config

    root = project_root()
    settings = config.load(root / "params.yaml", tuple(overrides)).services
    control.up(root, settings)
    _show_services(control.status(root, settings))
    if control.behind(root):
        print("the project's own registry has versions; copy them: python -m flows services take-over")


@services.command("down", epilog="Example: python -m flows services down")
def _down() -> None:
    """Stop the servers and every process they started; flows use the built-in ones again. Data and keys stay."""
    from flows.machines import control

    root = project_root()
    control.down(root, control.last_settings(root))


@services.command("keep", epilog="Example: python -m flows services keep --set services.mlflow_port=5001")
def _keep(overrides: Overrides = []) -> None:  # noqa: B006  # typer reads the default
    """Start the servers, and again whichever dies, until this command ends; they stay up after it."""
    from flows.machines import control
    from pvqae.core import config

    root = project_root()
    control.keep(root, config.load(root / "params.yaml", tuple(overrides)).services, _say)


@services.command("unit", epilog="Example: python -m flows services unit --write")
def _unit(
    write: Annotated[bool, typer.Option("--write", help="Write it among the user's units of systemd.")] = False,
) -> None:
    """Print a unit of systemd, of this user, that keeps the servers up from the start of the machine on."""
    from flows.machines import control

    root = project_root()
    if not write:
        print(control.unit(root), end="")
        return
    file = control.write_unit(root)
    print(f"{file}\nstart it:  systemctl --user daemon-reload && systemctl --user enable --now {file.name}")
    print("from the start of the machine, without a login:  loginctl enable-linger")


@services.command("take-over", epilog="Example: python -m flows services take-over")
def _take_over() -> None:
    """Copy versions, runs and promotion log from before the services into their registry, which has none yet."""
    from flows.machines import control

    control.take_over(project())


@services.command("status", epilog="Example: python -m flows services status --json")
def _status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show pid, port, health, memory and log of each server. Exit code 1 when one is not healthy."""
    from flows.machines import control

    root = project_root()
    found = control.status(root, control.last_settings(root))
    print(to_json(found)) if as_json else _show_services(found)
    if any(item.health != "healthy" for item in found):
        raise typer.Exit(FAILED)


@services.command("logs", epilog="Example: python -m flows services logs mlflow -n 20")
def _logs(
    name: Annotated[str, typer.Argument(help="postgres | s3 | prefect | mlflow | worker | watcher")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Number of lines.")] = 50,
) -> None:
    """Show the end of a server's log."""
    from flows.machines import control

    root = project_root()
    print(control.log(root, control.last_settings(root), name, lines))
