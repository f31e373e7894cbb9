"""`pvqae <verb>`: what needs no service. The stages of dvc.yaml work on params.yaml of the current folder."""

import os
import re
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


@app.command("score")
def score(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, e.g. models/demo/brick/bundle.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores.jsonl, scores.csv; scores only what is new. Else: stdout.")
    ] = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Draw them below OUT/heatmaps.")] = False,
    table: Annotated[bool, typer.Option("--csv", help="CSV to stdout instead of a JSON object per line.")] = False,
) -> None:
    """Score images with a bundle. Exit code 1: some could not be scored, their rows say why."""
    from pvqae.evaluation import batch_cli

    raise typer.Exit(batch_cli.score(bundle, images, out, heatmaps, table))


@app.command("drift")
def drift(
    bundle: Annotated[Path, typer.Argument(help="The bundle that made the scores.")],
    scores: Annotated[Path, typer.Argument(help="A folder that `pvqae score --out` wrote.")],
) -> None:
    """Compare scored images with the bundle's trusted normals. Exit code 3: drift; 4: too few images to say."""
    from pvqae.evaluation import batch_cli

    raise typer.Exit(batch_cli.drift(bundle, scores, config.load("params.yaml").drift))


@bench.command("accuracy")
def bench_accuracy(
    data: Annotated[
        Path | None,
        typer.Option(envvar="PVQAE_DATASETS", help="Folder with mvtec/, btad/, mtsd/ or folder/, or one such layout."),
    ] = None,
    classes: Annotated[str, typer.Option(help="E.g. bottle,toothbrush,magnetic_tile,demo; empty: all found.")] = "",
    seeds: Annotated[str, typer.Option(help="E.g. 0,1,2.")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="E.g. pvqae,patchcore_1,control; empty: all.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for accuracy.md, .json and .csv.")] = Path("reports/accuracy"),
    quick: Annotated[bool, typer.Option("--quick", help="Demo, small and barely trained: does it run?")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override of params.yaml, key=value.")] = None,
) -> None:
    """Ours beside PatchCore and a no-model control: same manifests, splits, seeds, metrics. It looks at test images."""
    from pvqae import runtime
    from pvqae.evaluation import accuracy, accuracy_table, subjects

    names = re.findall(r"[^\s,]+", classes or ("demo" if quick else ""))
    params = config.load("params.yaml", (*(accuracy.QUICK if quick else ()), *(set_ or [])))
    runtime.apply(runtime.plan(params.compute, 1))
    work = Path(".pvqae/bench")
    chosen = subjects.load(subjects.choose(subjects.known(data), names), work / "data", params)
    numbers = [int(seed) for seed in re.findall(r"\d+", "0" if quick else seeds)]
    asked = accuracy.known_methods(re.findall(r"[^\s,]+", methods))
    result = accuracy.run(chosen, params, numbers, work, methods=asked, tell=lambda words: typer.echo(words, err=True))
    accuracy_table.show(result)
    accuracy_table.write(result, out)
    typer.echo(out / "accuracy.md")


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


@bench.command("warm")
def bench_warm(
    category: Annotated[str, typer.Argument(help="A class whose data is built and checked.")],
    batches: Annotated[int, typer.Option(help="In how many batches its normals arrive.")] = 5,
) -> None:
    """A chain of warm starts, each from the one before, beside a training from scratch. Run again to go on."""
    from pvqae.evaluation import warm_chain

    layout, params = _workspace()
    typer.echo(warm_chain.bench(layout, params, category, batches))


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
