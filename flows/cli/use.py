"""Commands that use and choose versions: score, drift, serve, review, promote."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import Json, Overrides, guarded_server, project, project_root, registry
from pvqae.cli.console import FAILED, INSUFFICIENT, console, quiet, to_json

app = typer.Typer()
promote = typer.Typer(no_args_is_help=True, help="Choose, inspect or roll back the champion.")
PANEL = "Versions in use"
Dataset = Annotated[str, typer.Argument(help="The dataset's name.")]
Class = Annotated[str, typer.Argument(metavar="CLASS", help="The class of the model pvqae-DATASET-CLASS.")]
Reason = typer.Option(help="The reason; kept in the promotion log.")
Model = Annotated[
    str, typer.Argument(metavar="NAME@ALIAS", help="pvqae-DATASET-CLASS@champion, or a version's number.")
]
Source = Annotated[str, typer.Argument(help="A folder of images, or s3://bucket/prefix.")]
Out = Annotated[str, typer.Option(help="Write here instead of to scores/MODEL/SOURCE.")]


def _scored(name: str, source: str, out: str, heatmaps: bool, drift: bool, as_json: bool) -> Any:
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
    "score",
    epilog="Example: python -m flows score pvqae-demo-brick@champion s3://camera/today --heatmaps",
    rich_help_panel=PANEL,
)
def _score(
    name: Model,
    source: Source,
    out: Out = "",
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Draw heatmaps, too.")] = False,
    as_json: Json = False,
) -> None:
    """Score the new images of a folder or a bucket prefix. Exit code 1: some images could not be scored."""
    if _scored(name, source, out, heatmaps, False, as_json).found.failed:
        raise typer.Exit(FAILED)


@app.command(
    "drift", epilog="Example: python -m flows drift pvqae-demo-brick@champion s3://camera/today", rich_help_panel=PANEL
)
def _drift(name: Model, source: Source, out: Out = "", as_json: Json = False) -> None:
    """Score the new images, then compare all of them with the version's trusted normals; drift sends an event, too.

    Exit code 0: no drift, 3: drift, 4: too few images or normals to tell.
    """
    raise typer.Exit(_scored(name, source, out, False, True, as_json).drift.exit_code)


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

    params, say = page.params_for(root, dataset), partial(print, flush=True)
    if apply:
        print(*page.apply(root, params, say).lines, sep="\n")
    else:
        page.serve(root, params, host, port, most, browser, say)


@promote.command("run", epilog="Example: python -m flows promote run demo brick --reason 'new lamp'")
def _run(
    dataset: Dataset,
    category: Class,
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

        verdict = promote.run(root, dataset, category, trigger="manual", reason=reason, override=override or None)
    if as_json:
        print(to_json(verdict))
    else:
        print(*verdict.lines, verdict.sentence(lineage.model_name(dataset, category)), sep="\n")
    if not verdict.promoted:
        raise typer.Exit(INSUFFICIENT if verdict.outcome == "insufficient" else FAILED)


@promote.command("log", epilog="Example: python -m flows promote log demo")
def _log(
    dataset: Annotated[str, typer.Argument(help="Only this dataset.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print complete entries as JSON.")] = False,
) -> None:
    """Show every move of an alias: when, who, from which version to which, why, on what verdict."""
    root = project()
    from flows.core import lineage
    from flows.versions import promotions

    found = registry(root, strict=False)
    names = promotions.models_of(found, dataset) if dataset else found.owners(lineage.OURS)
    entries = {name: found.promotions(name) for name in names}
    if not entries:
        known = ", ".join(found.owners("")) or "none"
        print(f"no model pvqae-{dataset}... is registered; there are: {known}", file=sys.stderr)
    if as_json:
        print(promotions.as_json(entries))
        return
    screen = console()
    screen.print(promotions.table(entries, narrow=screen.width < promotions.WIDE))


@promote.command("rollback", epilog="Example: python -m flows promote rollback demo brick --reason 'misses scratches'")
def _rollback(
    dataset: Dataset,
    category: Class,
    reason: Annotated[str, Reason],
    version: Annotated[str, typer.Option(help="Take back only this version: safe to repeat.")] = "",
    as_json: Json = False,
) -> None:
    """Restore the previous champion. The gate does not promote the version taken back again."""
    with quiet(as_json):
        root = project()
        from flows.core import lineage, locks
        from flows.versions import promotions, report_page
        from flows.workspace import workspace

        found, name = registry(root, strict=False), lineage.model_name(dataset, category)
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
