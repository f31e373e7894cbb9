"""`pvqae <verb>`: what needs no service. The stages of dvc.yaml work on params.yaml of the current folder."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pvqae.cli import backbone_commands, processes, stream_command
from pvqae.cli.console import CliGroup, console, leave, quiet, to_json, with_version, workspace
from pvqae.core import runtime

STAGES, USE, ABOUT = "Stages, on params.yaml of the current folder", "A bundle in use", "Diagnosis and benchmarks"
app = typer.Typer(
    cls=CliGroup,
    callback=with_version,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help=__doc__,
    epilog="Example: pvqae score models/demo/brick/bundle ~/photos. Exit codes: docs/operations.md.",
)
_Category = Annotated[str, typer.Argument(help="A class of data/classes.yaml.")]
_Bundle = Annotated[Path, typer.Argument(help="A bundle's folder, e.g. models/demo/brick/bundle.")]
_Json = Annotated[
    bool, typer.Option("--json", help="Print only JSON on stdout, for programs; all else goes to stderr.")
]
data = typer.Typer(no_args_is_help=True, help="Datasets: make the demo, download, build the manifest, check it.")
app.add_typer(data, name="data", rich_help_panel=STAGES)
app.add_typer(backbone_commands.app, name="backbone", rich_help_panel=USE)
bench = typer.Typer(no_args_is_help=True, help="Measure what the documentation claims.")
app.add_typer(bench, name="bench", rich_help_panel=ABOUT)


@data.command("demo", epilog="Example: pvqae data demo data/raw/demo")
def _data_demo(
    out: Annotated[Path, typer.Argument(help="Folder to make, e.g. data/raw/demo.")],
    count: Annotated[
        int, typer.Option("--surfaces", min=0, help="Generate N synthetic surfaces of one class instead.")
    ] = 0,
) -> None:
    """Make the demo dataset (synthetic, no quality claim) from photographs that ship inside scikit-image."""
    from pvqae.datasets import demo

    if count:
        demo.make_surfaces(out, count)
    else:
        demo.make(out)


@data.command("fetch", epilog="Example: pvqae data fetch btad downloads/btad --accept-licence")
def _data_fetch(
    name: Annotated[
        str, typer.Argument(help="mvtec, btad, mtsd, visa, loco, mvtec_ad_2, mvtec_3d, kolektor or kolektor2.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make, e.g. downloads/mvtec.")],
    url: Annotated[str | None, typer.Option(help="Download the archive from this URL instead.")] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The archive's hash; by default it is recorded now and enforced later.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Confirm that you have read its licence.")
    ] = False,
) -> None:
    """Download a public dataset: the only command that uses a network, and only when you run it."""
    from pvqae.datasets import fetch

    say = partial(typer.echo, err=True)
    typer.echo(fetch.fetch(name, out, Path("data/sources.json"), url, sha256, accept_licence, say))


@data.command("build", epilog="Example: pvqae data build")
def _data_build() -> None:
    """Scan data/raw/<name>, decode every image once, write data/manifest.csv."""
    from pvqae.datasets import build

    _, params = workspace()
    typer.echo(build.build(Path.cwd(), params))


@data.command("check", epilog="Example: pvqae data check --json")
def _data_check(as_json: _Json = False) -> None:
    """Validate the manifest with Great Expectations; write data/rows for the classes that pass."""
    from pvqae.datasets import validation

    with quiet(as_json):
        found = validation.check(*workspace())
    typer.echo(to_json(found) if as_json else found)


@app.command("train", epilog="Example: pvqae train brick", rich_help_panel=STAGES)
def _train(network: Annotated[str, typer.Argument(help="A network named in data/classes.yaml.")]) -> None:
    """Train a network's autoencoder (and its folds); a killed training is resumed."""
    from pvqae.training import network as stage

    stage.train(*workspace(), network)


@app.command("prior", epilog="Example: pvqae prior brick", rich_help_panel=STAGES)
def _prior(group: Annotated[str, typer.Argument(help="A prior named in data/classes.yaml.")]) -> None:
    """Train a budget prior on the allocations of normal images."""
    from pvqae.prior import learn as stage

    stage.train(*workspace(), group)


@app.command("calibrate", epilog="Example: pvqae calibrate brick", rich_help_panel=STAGES)
def _calibrate(category: _Category) -> None:
    """Fit memory and statistics, set the threshold on unseen normals, write the class's bundle."""
    from pvqae.calibration import calibrate as stage

    typer.echo(f"bundle {stage.calibrate(*workspace(), category)}")


@app.command("evaluate", epilog="Example: pvqae evaluate brick", rich_help_panel=STAGES)
def _evaluate(category: _Category, as_json: _Json = False) -> None:
    """Score the class's test images with its bundle."""
    from pvqae.evaluation import stage

    with quiet(as_json):
        metrics = stage.run(*workspace(), category)
    if as_json:
        typer.echo(to_json(metrics))
        return
    shown = (
        "image_auroc",
        "pixel_auroc",
        "aupro",
        "aupro_005",
        "pixel_f1_max",
        "seg_f1",
        "false_alarm_rate",
        "miss_rate",
    )
    typer.echo(", ".join(f"{key} {metrics[key]:.4f}" for key in shown if metrics[key] is not None))


@app.command("report", epilog="Example: pvqae report", rich_help_panel=STAGES)
def _report() -> None:
    """Merge the classes' results into reports/<dataset>/index.html and metrics.json."""
    from pvqae.report.report import report as merge

    layout, _ = workspace()
    merge(layout)
    typer.echo(layout.reports / "index.html")


@app.command("score", epilog="Example: pvqae score models/demo/brick/bundle ~/photos --csv", rich_help_panel=USE)
def _score(
    bundle: _Bundle,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for scores.jsonl and scores.csv; only new images are scored. Default: stdout."),
    ] = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Write heatmaps to OUT/heatmaps.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Write what is marked to OUT/masks, as PNG.")] = False,
    table: Annotated[bool, typer.Option("--csv", help="CSV to stdout instead of a JSON object per line.")] = False,
) -> None:
    """Score images with a bundle. Exit code 1: some images could not be scored; their rows say why."""
    from pvqae.serving import batch_cli

    raise typer.Exit(batch_cli.score(bundle, images, out, heatmaps, masks, table))


stream_command.add(
    app,
    Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, e.g. models/demo/brick/bundle.")],
    stream_command.of_bundle,
    epilog="Example: pvqae stream models/demo/brick/bundle rtsp://camera/line1 --out line1 --page 8090",
    rich_help_panel=USE,
)


@app.command(
    "submit", epilog="Example: pvqae submit models/ad2/can/bundle data/raw/ad2/can submission", rich_help_panel=USE
)
def _submit(
    bundle: _Bundle,
    folder: Annotated[Path, typer.Argument(help="The class's folder of MVTec AD 2, with test_private/.")],
    out: Annotated[Path, typer.Argument(help="Folder for anomaly_images/ and anomaly_images_thresholded/.")],
) -> None:
    """Write what the evaluation server of MVTec AD 2 wants of a class: maps and masks of its unlabelled images."""
    from pvqae.inference import bundle as bundles
    from pvqae.serving import batch_cli, submission

    batch_cli.prepare()
    typer.echo(f"{submission.write(bundles.load(bundle), folder, out)} images: {out}")


@app.command("drift", epilog="Example: pvqae drift models/demo/brick/bundle FOLDER", rich_help_panel=USE)
def _drift(
    bundle: Annotated[Path, typer.Argument(help="The bundle that made the scores.")],
    scores: Annotated[Path, typer.Argument(help="A folder that `pvqae score --out` wrote.")],
    as_json: _Json = False,
) -> None:
    """Compare scored images with the bundle's trusted normals. Exit code 3: drift; 4: too few images to say."""
    from pvqae.core import config
    from pvqae.serving import batch_cli

    raise typer.Exit(batch_cli.drift(bundle, scores, config.params_here().drift, as_json))


@app.command("export", epilog="Example: pvqae export models/demo/brick/bundle exported/brick", rich_help_panel=USE)
def _export(
    bundle: _Bundle,
    out: Annotated[
        Path, typer.Argument(help="Folder to write: the graph, card.json, run.py, reading.zip, SHA256SUMS.")
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images for the parity check. Default: the class's test images here.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="onnx, or openvino for model.xml and model.bin.")] = "onnx",
) -> None:
    """Write a detector as ONNX or OpenVINO IR, and a script that needs only numpy and that runtime, if they give the
    bundle's scores.
    """
    from pvqae.export import export as stage

    stage.run(bundle, out, images, typer.echo, form=form)


@app.command("serve", epilog="Example: pvqae serve models/demo/brick/bundle --port 8080", rich_help_panel=USE)
def _serve(
    bundle: _Bundle,
    host: Annotated[
        str | None, typer.Option(help="Override service.host; a non-loopback host requires a token.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Override service.port; 0 takes a free one.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send. Default: PVQAE_TOKEN, if set.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override of params.yaml, key=value.")] = None,
) -> None:
    """Score images over HTTP with a bundle: POST /v1/score, /v1/score/batch; /openapi.json describes all."""
    from pvqae.core import config
    from pvqae.serving import server

    params = config.params_here(tuple(set_ or ()))
    settings = server.settings_of(params, host, port)
    server.serve(bundle, params, settings, server.token_of(token_file), typer.echo)


@app.command("pack", epilog="Example: pvqae pack models/demo/brick/bundle packed", hidden=True)
def _pack(bundle: _Bundle, out: Annotated[Path, typer.Argument(help="Folder to make.")]) -> None:
    """Copy a bundle and put the backbone's weights into the copy, for the registry."""
    from pvqae.inference import bundle as bundles

    bundles.export(bundle, out)


@app.command("parity", epilog="Example: pvqae parity packed reports/demo/classes/brick/images.csv data", hidden=True)
def _parity(
    bundle: _Bundle,
    images: Annotated[Path, typer.Argument(help="Table of an evaluation: sample_id, path, image_score.")],
    data: Annotated[Path, typer.Argument(help="Folder that the paths are relative to.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of images, evenly spread.")] = 16,
    threads: Annotated[
        int, typer.Option(min=1, help="As in the evaluation: another number sums in another order.")
    ] = 1,
) -> None:
    """Score images of an evaluation again; print the largest difference of a score as JSON."""
    import torch

    from pvqae.export import parity as check

    torch.set_num_threads(threads)
    typer.echo(json.dumps(check.compare(bundle, images, data, rows)))


@bench.command("serve", epilog="Example: pvqae bench serve models/demo/brick/bundle data/raw/demo/brick/test")
def _bench_serve(
    bundle: _Bundle,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images, that are sent in turn.")],
    requests: Annotated[int, typer.Option(min=1, help="Number of requests, for one client and for several.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent clients in the second run.")] = 4,
) -> None:
    """Measure latency over HTTP: start a service on this machine, ask it from one client, then from several at once."""
    from pvqae.serving import load_test

    load_test.bench(bundle, images, requests, clients)


@app.command("doctor", epilog="Example: pvqae doctor", rich_help_panel=ABOUT)
def _doctor(as_json: _Json = False) -> None:
    """Show what is installed, which device there is, how the project is; what is wrong, and how to repair it.

    Exit code 1: a problem was found. `python -m flows doctor` looks at servers and versions, too.
    """
    from pvqae.cli import checks, diagnosis

    found = diagnosis.examine(Path.cwd())
    raise typer.Exit(checks.show(found, as_json, console()))


def main() -> None:
    """Run the console script."""
    runtime.complete_environment()
    if sys.argv[1:2] == ["fork-server"]:  # started by a flow
        processes.serve(main, *sys.argv[2:])
    code = processes.ask(sys.argv[1:])
    if code is not None:
        os._exit(code)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    processes.end_with_flow()
    try:
        app(prog_name="pvqae")
    except SystemExit as ended:
        leave(ended.code)


if __name__ == "__main__":
    main()
