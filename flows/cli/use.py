"""Commands that use and choose versions: score, drift, serve, review, promote."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.shared import Json, Overrides, guarded_server, project, project_root, registry
from pvqae.cli.console import FAILED, INSUFFICIENT, console, quiet, to_json

if TYPE_CHECKING:
    from rich.table import Table

    from flows.adapters.tracking import Promotion, Registry

app = typer.Typer()
promote = typer.Typer(no_args_is_help=True, help="Choose, inspect or roll back the champion.")
PANEL = "Versions in use"
Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="The dataset's name; or the whole pvqae-DATASET-CLASS, and no CLASS.")
]
Class = Annotated[str, typer.Argument(metavar="CLASS", help="The class of the model pvqae-DATASET-CLASS.")]
Reason = typer.Option(help="The reason; kept in the promotion log.")
Model = Annotated[
    str, typer.Argument(metavar="NAME@ALIAS", help="pvqae-DATASET-CLASS@champion, or a version's number.")
]
_HEAD = ("when", "model", "alias", "from", "to", "kind", "verdict", "who", "why", "code", "data")
_NARROW = ("when", "model", "from", "to", "kind", "why")
_WIDE = 150  # columns of a terminal from which all of _HEAD is readable
Source = Annotated[str, typer.Argument(help="A folder of images, or s3://bucket/prefix.")]
Out = Annotated[str, typer.Option(help="Write here instead of to scores/MODEL/SOURCE.")]


def _scored(name: str, source: str, out: str, as_json: bool, **more: bool) -> Any:
    """Run the score flow and print what it came to."""
    with quiet(as_json):
        root = project()
        ready = guarded_server()
        from flows.serving.score import score as flow

        ready()
        result = flow(str(root), name, source, out, **more)
    print(to_json(result)) if as_json else print(*result.lines, sep="\n")
    return result


@app.command(
    "score",
    epilog="Example: python -m flows score pvqae-demo-brick@champion s3://camera/today --heatmaps",
    rich_help_panel=PANEL,
)
def _score(
    name: Model,
    source: Source,
    out: Out = "",
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Draw heatmaps, too.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Write what is marked, too, as PNG.")] = False,
    as_json: Json = False,
) -> None:
    """Score the new images of a folder or a bucket prefix. Exit code 1: some images could not be scored."""
    if _scored(name, source, out, as_json, heatmaps=heatmaps, masks=masks).found.failed:
        raise typer.Exit(FAILED)


@app.command(
    "drift", epilog="Example: python -m flows drift pvqae-demo-brick@champion s3://camera/today", rich_help_panel=PANEL
)
def _drift(name: Model, source: Source, out: Out = "", as_json: Json = False) -> None:
    """Score the new images, then compare all of them with the version's trusted normals; drift sends an event, too.

    Exit code 0: no drift, 3: drift, 4: too few images or normals to tell.
    """
    raise typer.Exit(_scored(name, source, out, as_json, judge_drift=True).drift.exit_code)


@app.command(
    "serve", epilog="Example: python -m flows serve pvqae-demo-brick@champion --port 8080", rich_help_panel=PANEL
)
def _serve(
    name: Model,
    host: Annotated[
        str | None, typer.Option(help="Override service.host; a non-loopback host requires a token.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Override service.port.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; default: PVQAE_TOKEN, if set.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
) -> None:
    """Score images over HTTP with the version that an alias names; follow the alias when it moves.

    The version that answers keeps answering when the new one is damaged or the registry is down.
    """
    root = project()
    from flows.serving import serve as serving

    serving.serve(
        root, name, host=host, port=port, token_file=token_file, overrides=tuple(overrides),
        tell=lambda line: print(line, flush=True),
    )  # fmt: skip


@app.command("review", epilog="Example: python -m flows review --dataset parts", rich_help_panel=PANEL)
def _review(
    dataset: Annotated[str, typer.Option(help="A dataset that was trained before; default: the project's own.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Apply the labels without serving the page.")] = False,
    host: Annotated[str, typer.Option(help="A non-loopback host requires the printed token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8090,
    most: Annotated[int, typer.Option(min=1, help="At most this many scored images per queue.")] = 100,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Label images on a local page by keyboard: those held back, those nearest the threshold, false alarms.

    Apply makes one DVC version of the dataset and a commit that says who labelled what and when.
    """
    root = project()
    from flows.review import review as page

    say = partial(print, flush=True)
    if apply:
        print(*page.apply(root, dataset, say).lines, sep="\n")
    else:
        page.serve(root, dataset, host, port, most, browser, say)


def _owner(found: "Registry", dataset: str, category: str) -> tuple[str, str]:
    """Return dataset and class, of which a model's whole name may stand for both."""
    from flows.versions import promotions

    if category:
        return dataset, category
    owner = promotions.owner_of(found, dataset)
    return owner.dataset, owner.category


@promote.command("run", epilog="Example: python -m flows promote run demo brick --reason 'new lamp'")
def _run(
    dataset: Dataset,
    category: Class = "",
    reason: Annotated[str, Reason] = "asked for",
    override: Annotated[str, typer.Option(help="Promote whatever the rules say, with this reason.")] = "",
    as_json: Json = False,
) -> None:
    """Judge the challenger against the champion on the frozen gate images; promote it if it keeps every rule.

    Exit code 0: promoted, 1: refused, 3: too few gate images to tell.
    """
    with quiet(as_json):
        root = project()
        from flows.core import lineage
        from flows.gate import promote

        dataset, category = _owner(registry(root), dataset, category)
        verdict = promote.run(root, dataset, category, trigger="manual", reason=reason, override=override or None)
    if as_json:
        print(to_json(verdict))
    else:
        print(*verdict.lines, verdict.sentence(lineage.model_name(dataset, category)), sep="\n")
    if not verdict.promoted:
        raise typer.Exit(INSUFFICIENT if verdict.outcome == "insufficient" else FAILED)


@promote.command("log", epilog="Example: python -m flows promote log demo")
def _log(
    dataset: Annotated[
        str, typer.Argument(help="Only this dataset, or this model (pvqae-DATASET-CLASS); default: every model.")
    ] = "",
    category: Annotated[str, typer.Argument(metavar="CLASS", help="Only this class of the dataset.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print complete entries as JSON.")] = False,
) -> None:
    """Show every move of an alias: when, who, from which version to which, why, on what verdict."""
    root = project()
    from flows.core import lineage
    from flows.versions import promotions

    found = registry(root, strict=False)
    every = found.owners(lineage.OURS)
    names = promotions.models_of(found, dataset) if dataset else list(every)
    wanted = lineage.model_name(dataset, category) if category else dataset
    if category or dataset in every:
        names = [name for name in (*names, dataset) if name == wanted]
    entries = {name: found.promotions(name) for name in names}
    if not entries:
        known = ", ".join(found.owners("")) or "none"
        asked = wanted if category else f"{wanted} or {lineage.model_name(dataset, '')}..."
        print(f"no model {asked} is registered; there are: {known}", file=sys.stderr)
    if as_json:
        print(to_json(entries))
        return
    screen = console()
    screen.print(_log_table(entries, screen.width < _WIDE))


def _log_table(log: Mapping[str, Sequence["Promotion"]], narrow: bool) -> "Table":
    """Return the log as a table, one row an entry, oldest first.

    `narrow`: what 80 columns hold; only the reason wraps. The kind says which alias, `--json` has the rest.
    """
    from rich import box
    from rich.table import Table

    head = _NARROW if narrow else _HEAD
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in head:
        shown.add_column(name, no_wrap=name != "why", overflow="fold")
    for row in _log_rows(log):
        shown.add_row(*((row[name][:10] if narrow and name == "when" else row[name]) for name in head))
    return shown


def _log_rows(log: Mapping[str, Sequence["Promotion"]]) -> list[dict[str, str]]:
    """Return one printable row per entry of the models' logs, oldest first."""
    entries = sorted(((entry, name) for name, own in log.items() for entry in own), key=lambda pair: pair[0].when)
    return [
        {
            "when": entry.when[:19] + "Z",
            "model": name,
            "alias": entry.alias,
            "from": entry.from_version,
            "to": entry.to_version,
            "kind": entry.kind,
            "verdict": entry.verdict or "-",
            "who": entry.who,
            "why": entry.reasons[0] if entry.reasons else "",
            "code": entry.lineage.get("git_sha", "")[:12],
            "data": entry.lineage.get("data_sha", "")[:12],
        }
        for entry, name in entries
    ]


@promote.command("rollback", epilog="Example: python -m flows promote rollback demo brick --reason 'misses scratches'")
def _rollback(
    dataset: Dataset,
    reason: Annotated[str, Reason],
    category: Class = "",
    version: Annotated[str, typer.Option(help="Take back only this version: safe to repeat.")] = "",
    as_json: Json = False,
) -> None:
    """Restore the previous champion. The gate does not promote the version taken back again."""
    with quiet(as_json):
        root = project()
        from flows.core import lineage, locks
        from flows.versions import promotions, report_page
        from flows.workspace import workspace

        found = registry(root, strict=False)
        dataset, category = _owner(found, dataset, category)
        name = lineage.model_name(dataset, category)
        promotions.check_owners(found, dataset, [category])
        entry = promotions.rollback(found, root, dataset, name, reason, version)
        with locks.tried(workspace.lock_file(root, dataset)) as free:
            if free:  # else a flow works on the dataset, which writes the page at its end; a rollback waits for nothing
                report_page.refresh(found, root, dataset, category)
    if as_json:
        print(to_json(entry))
    else:
        print(f"{name}: champion is version {entry.to_version} again, version {entry.from_version} was taken back")


@promote.command("power", epilog="Example: python -m flows promote power --draws 200")
def _power(draws: Annotated[int, typer.Option(min=1, help="Simulated gates per row.")] = 500) -> None:
    """Simulate how reliably the gate decides with the project's limits, for several numbers of gate parts."""
    root = project_root()
    from flows.gate import power
    from pvqae.core import config

    console().print(power.table(config.load(root / "params.yaml").gate, draws))
