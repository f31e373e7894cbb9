"""Commands that use versions: score, drift, serve, export, review; what became of them: card, history, notify."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import Json, Overrides, guarded_server, project, registry
from pvqae.cli import stream_command
from pvqae.cli.console import FAILED, quiet, to_json

app = typer.Typer()
PANEL = "Versions in use"
Model = Annotated[
    str, typer.Argument(metavar="NAME@ALIAS", help="pvqae-DATASET-CLASS@champion, or a version's number.")
]
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
    shadow: Annotated[
        str, typer.Option(metavar="NAME@ALIAS", help="Score what was answered with this version, too, for comparison.")
    ] = "",
    overrides: Overrides = [],  # noqa: B006  # typer reads the default
) -> None:
    """Score images over HTTP with the version that an alias names; follow the alias when it moves.

    The version that answers keeps answering when the new one is damaged or the registry is down.
    """
    root = project()
    from flows.serving import serve as serving

    serving.serve(
        root, name, host=host, port=port, token_file=token_file, shadow=shadow, overrides=tuple(overrides),
        tell=lambda line: print(line, flush=True),
    )  # fmt: skip


def _stream(name: str, source: str, options: stream_command.Options) -> int:
    """Score a source with a registered version; return the exit code."""
    root = project()
    from flows.serving import score

    return score.stream(root, name, source, options)


stream_command.add(
    app,
    Model,
    _stream,
    epilog="Example: python -m flows stream pvqae-demo-brick@champion s3://camera/line1 --out line1",
    rich_help_panel=PANEL,
)


@app.command("export", epilog="Example: python -m flows export pvqae-demo-brick@champion", rich_help_panel=PANEL)
def _export(
    name: Model,
    out: Annotated[str, typer.Argument(metavar="[OUT]", help="Folder to write; default: exported/MODEL.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="Folder of images for the parity check. Default: the class's test images.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="onnx, or openvino for model.xml and model.bin.")] = "onnx",
    as_json: Json = False,
) -> None:
    """Write a version as ONNX or OpenVINO IR, and a script that needs only numpy and that runtime, if they give the
    version's scores.
    """
    with quiet(as_json):
        root = project()
        from flows.serving import score

        found = score.export(root, name, out, images, partial(print, flush=True), form)
    if as_json:
        print(to_json(found))


@app.command("review", epilog="Example: python -m flows review --dataset parts", rich_help_panel=PANEL)
def _review(
    dataset: Annotated[str, typer.Option(help="A dataset that was trained before; default: the project's own.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Apply the labels without serving the page.")] = False,
    host: Annotated[str, typer.Option(help="A non-loopback host requires the printed token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8090,
    most: Annotated[int, typer.Option(min=1, help="At most this many scored images per queue.")] = 100,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Label images on a local page by keyboard: those held back, nearest the threshold, false alarms, odd in the gate.

    Apply makes one DVC version of the dataset and a commit that says who labelled what and when.
    """
    root = project()
    from flows.review import review as page

    say = partial(print, flush=True)
    if apply:
        print(*page.apply(root, dataset, say).lines, sep="\n")
    else:
        page.serve(root, dataset, host, port, most, browser, say)


@app.command("card", epilog="Example: python -m flows card pvqae-demo-brick@champion", rich_help_panel=PANEL)
def _card(name: Model) -> None:
    """Print a version's model card: Markdown with the YAML fields of Hugging Face, the gate's verdict included."""
    root = project()
    from flows.serving import score
    from flows.versions import promotions
    from flows.versions.card import ModelCard
    from pvqae.inference.bundle import REPAIR

    found = registry(root, strict=False)
    model, version = score.parse(name, found)
    bundle, tags = score.bundle_of(root, found, model, version), found.version_tags(model, version)
    calibration, settings = (bundle.json(f"{file}.json", REPAIR) for file in ("calibration", "config"))
    alias = next((alias for alias in promotions.ALIASES if promotions.held(found, model, alias) == version), "")
    made = ModelCard(model, promotions.owner_of(found, model), calibration, settings, tags)
    print(made.text(version, alias), end="")


@app.command("history", epilog="Example: python -m flows history parts", rich_help_panel=PANEL)
def _history(
    dataset: Annotated[str, typer.Argument(help="The dataset's name; default: every dataset with a version.")] = "",
    as_json: Json = False,
) -> None:
    """Write reports/DATASET/history.html: versions, verdicts, alarms, drift, reviews, rollbacks and pins over time."""
    root = project()
    from flows.core import lineage
    from flows.versions import history
    from pvqae.core.errors import ConfigError

    found = registry(root, strict=False)
    known = sorted({owner.dataset for owner in found.owners(lineage.OURS).values() if owner})
    if dataset not in ("", *known):
        raise ConfigError(f"{dataset}: expected a dataset with a version, one of {', '.join(known) or 'none'}")
    wanted = [dataset] if dataset else known
    if as_json:
        print(to_json([history.collect(found, root, name) for name in wanted]))
        return
    for name in wanted:
        print(history.refresh(found, root, name) or f"{name}: a flow works on it, which writes the page at its end")


@app.command("notify", epilog="Example: python -m flows notify --test", rich_help_panel=PANEL)
def _notify(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to each place.")] = False,
    as_json: Json = False,
) -> None:
    """Show who is told of what (the section notify of params.yaml), or try it. Exit code 1: a place was not reached."""
    with quiet(as_json):
        root = project()
        from flows.adapters import notifications
        from pvqae.core import config

        settings = config.load(root / "params.yaml").notify
        if settings.blocks and test:
            guarded_server()()
        found = notifications.try_out(settings) if test else ()
        known = notifications.places(settings)
    if as_json:
        print(to_json(found if test else known))
    else:
        print(*(found or known or ("nobody is told: fill the section notify of params.yaml",)), sep="\n")
    if any(one.error for one in found):
        raise typer.Exit(FAILED)
