"""`pvqae <verb>`: what needs no service. The stages of dvc.yaml work on params.yaml of the current folder."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pvqae import config, watchdog
from pvqae.errors import PvqaeError
from pvqae.layout import Layout

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
data = typer.Typer(no_args_is_help=True, help="Datasets: make the demo, download, build the manifest, check it.")
app.add_typer(data, name="data")
bench = typer.Typer(no_args_is_help=True, help="Measure what the documentation claims.")
app.add_typer(bench, name="bench")


def _workspace() -> tuple[Layout, config.Params]:
    params = config.load("params.yaml")
    return Layout(Path.cwd(), params.data.name), params


@data.command("demo")
def data_demo(out: Annotated[Path, typer.Argument(help="Folder to make, e.g. data/raw/demo.")]) -> None:
    """Make the demo dataset (synthetic, no quality claim) from photographs that ship inside scikit-image."""
    from pvqae.datasets import demo

    demo.make(out)


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mvtec, btad or mtsd.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, e.g. downloads/mvtec.")],
    url: Annotated[str | None, typer.Option(help="Another address of the archive.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The archive's hash; else recorded now, enforced later.")] = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="You have read its licence.")] = False,
) -> None:
    """Download a public dataset: the only command that uses a network, and only when you run it."""
    from pvqae.datasets import fetch

    typer.echo(fetch.fetch(name, out, Path("data/sources.json"), url, sha256, accept_licence))


@data.command("build")
def data_build() -> None:
    """Scan data/raw/<name>, decode every image once, write data/manifest.csv."""
    from pvqae.datasets import build

    _, params = _workspace()
    typer.echo(build.build(Path.cwd(), params))


@data.command("check")
def data_check() -> None:
    """Validate the manifest with Great Expectations; write data/rows only if all is well."""
    from pvqae.datasets import validation

    layout, params = _workspace()
    typer.echo(validation.check(layout, params))


@app.command("train")
def train(network: Annotated[str, typer.Argument(help="A network of data/classes.yaml.")]) -> None:
    """Train a network's autoencoder (and its folds); resumes what a kill left."""
    from pvqae.training import network as stage

    stage.train(*_workspace(), network)


@app.command("prior")
def prior(group: Annotated[str, typer.Argument(help="A prior of data/classes.yaml.")]) -> None:
    """Train a budget prior on the allocations of normal images."""
    from pvqae.training import prior as stage

    stage.train(*_workspace(), group)


@app.command("calibrate")
def calibrate(category: Annotated[str, typer.Argument(help="A class of data/classes.yaml.")]) -> None:
    """Fit memory and statistics, set the threshold on unseen normals, write the class's bundle."""
    from pvqae.inference import calibrate as stage

    typer.echo(f"bundle {stage.calibrate(*_workspace(), category)}")


@app.command("evaluate")
def evaluate(category: Annotated[str, typer.Argument(help="A class of data/classes.yaml.")]) -> None:
    """Score the class's test images with its bundle."""
    from pvqae.evaluation import stage

    metrics = stage.run(*_workspace(), category)
    shown = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate")
    typer.echo(", ".join(f"{key} {metrics[key]:.4f}" for key in shown if metrics[key] is not None))


@app.command("report")
def report() -> None:
    """Merge the classes' results into reports/<dataset>/index.html and metrics.json."""
    from pvqae.evaluation.report import report as merge

    layout, _ = _workspace()
    merge(layout)
    typer.echo(layout.reports / "index.html")


@bench.command("calibration")
def bench_calibration(category: Annotated[str, typer.Argument(help="A class with a bundle.")]) -> None:
    """Realised false-alarm rates over 200 random halves of the class's unseen normals."""
    from pvqae.evaluation import proof

    found = proof.calibration(*_workspace(), category)
    typer.echo(
        f"{found['n_normals']} unseen normals of {found['n_groups']} groups, {found['draws']} draws: target "
        f"{found['target']:.1%}, realised mean {found['mean']:.2%}, 95 % of draws within "
        f"{found['low']:.2%}-{found['high']:.2%}"
    )


def main() -> None:
    """The console script: errors that a user can repair are one paragraph, exit code 2."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    watchdog.start()
    try:
        app()
    except PvqaeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
