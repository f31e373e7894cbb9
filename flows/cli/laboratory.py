"""`python -m flows bench` and `experiment`: measure what the documentation claims, answer open questions."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import project, registry
from pvqae.cli.console import workspace

if TYPE_CHECKING:
    from flows.experiments import subjects
    from pvqae.core import config

app = typer.Typer()
_WORK = Path(".pvqae/bench")
_DATA = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder with mvtec/, btad/, mtsd/ or folder/, or one such layout; repeatable. Default: $PVQAE_DATASETS, "
        "several separated as in $PATH, or ../shared/datasets."
    ),
]
_CLASSES = Annotated[str, typer.Option(help="E.g. bottle,screw; empty: all found.")]
_SEEDS = Annotated[str, typer.Option(help="E.g. 0,1,2.")]
_SET = Annotated[list[str] | None, typer.Option("--set", help="Override one param: key=value.")]
_QUICK = Annotated[bool, typer.Option("--quick", help="The demo, small and barely trained: does it run?")]
bench = typer.Typer(no_args_is_help=True, help="Reproduce the measurements in the documentation.")


@app.command("experiment", epilog="Example: python -m flows experiment lambda", rich_help_panel="The method")
def _experiment(
    name: Annotated[str, typer.Argument(help="An experiment's name; all runs every one, list shows the names.")],
    quick: Annotated[bool, typer.Option("--quick", help="The demo only, tiny; its numbers mean nothing.")] = False,
    data: _DATA = None,
) -> None:
    """Answer an open question of the method with numbers, on a page of docs/experiments.

    If it is interrupted, run it again to continue.
    """
    if name == "list":
        from flows.experiments.catalogue import EXPERIMENTS

        print("\n".join(f"{known:16} {experiment.question}" for known, experiment in EXPERIMENTS.items()))
        return
    from flows.experiments import runs

    root = project()
    for page in runs.run(root, name, registry(root), quick, data or ()):
        print(page)


@bench.command("accuracy", epilog="Example: python -m flows bench accuracy --quick")
def _accuracy(
    data: _DATA = None,
    classes: Annotated[str, typer.Option(help="E.g. bottle,toothbrush,magnetic_tile,demo; empty: all found.")] = "",
    seeds: _SEEDS = "0,1,2",
    methods: Annotated[str, typer.Option(help="E.g. pvqae,patchcore_1,control; empty: all.")] = "",
    rivals: Annotated[
        bool, typer.Option("--rivals", help="Run all rivals, too: other libraries, installed now.")
    ] = False,
    rival: Annotated[list[str] | None, typer.Option(help="Run this rival, e.g. anomalib_padim; repeatable.")] = None,
    rival_minutes: Annotated[float, typer.Option(min=0.1, help="The longest that a rival may take on a class.")] = 30,
    out: Annotated[Path, typer.Option(help="Folder for accuracy.md, .json and .csv.")] = Path("reports/accuracy"),
    quick: _QUICK = False,
    set_: _SET = None,
) -> None:
    """Compare our detector, PatchCore and a no-model control on the same test images, splits, seeds and metrics.

    Rivals are anomalib and AnomaVision on the same frozen features, each in an environment of its own below
    .pvqae/rivals. If it is interrupted, run it again to continue.
    """
    from flows.experiments import accuracy

    asked = accuracy.known_methods(re.findall(r"[^\s,]+", methods), ("all",) if rivals else rival or ())
    overrides = [*(accuracy.QUICK if quick else ()), *(set_ or [])]
    chosen, params, numbers = _asked(data, classes or ("demo" if quick else ""), "0" if quick else seeds, overrides)

    def tell(words: str) -> None:
        typer.echo(words, err=True)

    result = accuracy.run(chosen, params, numbers, _WORK, methods=asked, minutes=rival_minutes, tell=tell)
    result.show()
    result.write(out)
    typer.echo(out / "accuracy.md")


@bench.command(
    "readouts", epilog="Example: python -m flows bench readouts --classes bottle,toothbrush,screw,commutator"
)
def _readouts(
    data: _DATA = None,
    classes: _CLASSES = "",
    seeds: _SEEDS = "0,1,2",
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/readouts.md"),
    set_: _SET = None,
) -> None:
    """Read memories out in every way on real defects; each class judges what the other classes would have chosen."""
    from flows.experiments import readouts
    from pvqae.core import files

    found, params, numbers = _asked(data, classes, seeds, set_)
    table = readouts.run(found, params, numbers, _WORK)
    files.write_text(out, readouts.page(table, readouts.about(params, numbers)))
    typer.echo(out)


@bench.command("fusion", epilog="Example: python -m flows bench fusion --classes bottle,toothbrush --steps 60")
def _fusion(
    data: _DATA = None,
    classes: _CLASSES = "",
    seeds: _SEEDS = "0",
    steps: Annotated[str, typer.Option(help="Steps that networks are trained for, e.g. 60,240.")] = "60,240",
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/fusion.md"),
    quick: _QUICK = False,
    set_: _SET = None,
) -> None:
    """Fuse the memory's score with S_prior, S_recon and priors over codes in every way, on real defects.

    Each class judges what the other classes would have chosen. If it is interrupted, run it again to continue.
    """
    from flows.experiments import fusion
    from flows.experiments.accuracy import QUICK
    from pvqae.core import files

    effort = fusion.QUICK if quick else fusion.Effort(tuple(int(x) for x in re.findall(r"\d+", steps)))
    overrides = [*(QUICK if quick else ()), *(set_ or [])]
    found, params, numbers = _asked(data, classes or ("demo" if quick else ""), seeds, overrides)
    results = fusion.run(found, params, numbers, _WORK, effort)
    files.write_text(out, fusion.page(results, found, params, effort))
    typer.echo(out)


@bench.command("long", epilog="Example: python -m flows bench long --classes bottle --settings linear --steps 6000")
def _long(
    data: _DATA = None,
    classes: _CLASSES = "bottle,toothbrush",
    settings: Annotated[str, typer.Option(help="Of linear,constant,perceptual; empty: all.")] = "",
    seeds: _SEEDS = "0",
    steps: Annotated[int, typer.Option(min=2, help="Of 4 images each, in all.")] = 6000,
    out: Annotated[Path, typer.Option(help="The page to write, its plot beside it.")] = Path("reports/vqgan_long.md"),
    measured: Annotated[
        bool, typer.Option("--measured", help="Write the page from what was measured before; train nothing.")
    ] = False,
    quick: _QUICK = False,
    set_: _SET = None,
) -> None:
    """Train the paper's own form, on pixels, for hours, and measure it at several steps.

    The page grows with every point. If it is interrupted, run it again to continue where it was, seconds lost. Pictures
    of images and reconstructions stay below .pvqae/bench/long.
    """
    from dataclasses import replace

    from flows.experiments import long_training
    from flows.experiments.accuracy import QUICK
    from pvqae.core import files

    effort = long_training.QUICK if quick else replace(long_training.Effort(), steps=steps)
    names = long_training.chosen(re.findall(r"[^\s,]+", settings))
    overrides = [*long_training.BASE, *(QUICK if quick else ()), *(set_ or [])]
    found, params, numbers = _asked(data, "demo" if quick else classes, seeds, overrides)
    words = ["python -m flows bench long", f"--classes {','.join(one.name for one in found)}"]
    words += [f"--settings {','.join(names)}", f"--steps {effort.steps}", *(f"--set {text}" for text in set_ or [])]
    answer, picture = Path("docs/experiments/answers/vqgan_long.md"), out.with_suffix(".svg")
    said = answer.read_text("utf-8") if answer.exists() and not quick else ""
    points = []
    for point in long_training.run(found, params, names, numbers, _WORK, effort, go_on=not measured):
        points.append(point)
        files.write_text(picture, long_training.plot(points))
        files.write_text(out, long_training.page(points, " ".join(words), params, effort, picture.name, said))
        typer.echo(f"{point}: image AUROC {point.figures['image_auroc']:.3f}")
    typer.echo(out)


def _asked(
    data: list[str] | None, classes: str, seeds: str, overrides: list[str] | None
) -> "tuple[list[subjects.Subject], config.Params, list[int]]":
    """Return the classes, params and seeds that a bench was asked for."""
    from flows.experiments import subjects
    from pvqae.core import config, runtime

    params = config.load("params.yaml", tuple(overrides or ()))
    runtime.plan(params.compute, 1).apply()
    found = subjects.find(re.findall(r"[^\s,]+", classes), subjects.dataset_roots(data or ()), _WORK / "data", params)
    return found, params, [int(seed) for seed in re.findall(r"\d+", seeds)]


@bench.command("calibration", epilog="Example: python -m flows bench calibration brick")
def _calibration(category: Annotated[str, typer.Argument(help="A class with a bundle.")]) -> None:
    """Measure the false-alarm rate over 200 random halves of the class's unseen normals."""
    from flows.experiments import limits

    found = limits.calibration(*workspace(), category)
    typer.echo(
        f"{found['n_normals']} unseen normals of {found['n_groups']} groups, {found['draws']} draws: target "
        f"{found['target']:.1%}, realised mean {found['mean']:.2%}, 95 % of draws within "
        f"{found['low']:.2%}-{found['high']:.2%}"
    )


@bench.command("smallest", epilog="Example: python -m flows bench smallest brick")
def _smallest(category: Annotated[str, typer.Argument(help="A class with a bundle.")]) -> None:
    """Find the smallest visible defect, in pixels of the image, with ever smaller spots on unseen normals."""
    from flows.experiments import limits

    typer.echo(limits.smallest(*workspace(), category))


@bench.command("hairlines", epilog="Example: python -m flows bench hairlines --quick")
def _hairlines(
    bits: Annotated[str, typer.Option(help="Of the made images: 8,16, or one of them.")] = "8,16",
    quick: Annotated[bool, typer.Option("--quick", help="Few small images: does it run?")] = False,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/hairlines.md"),
    set_: _SET = None,
) -> None:
    """Find lines of known width and contrast on made line scans, 8 and 16 bit, and measure what a large image takes.

    Images come from the seed: no dataset is needed.
    """
    from flows.experiments import limits
    from pvqae.core import config, files

    asked = limits.QUICK_HAIRLINES if quick else limits.HAIRLINES
    # Tiles are never smaller than the image's own pixels: so many see each of them.
    tiled = ("train.steps=0", "image.aspect=tile", "image.tiles=64", *asked.overrides, *(set_ or ()))
    params = config.load("params.yaml", tiled)
    depths = [int(found) for found in re.findall(r"\d+", bits)]
    if not depths or set(depths) - {8, 16}:
        raise typer.BadParameter(f"expected 8, 16 or both, found {bits!r}", param_hint="--bits")
    page = limits.hairlines_page({depth: limits.hairlines(params, asked, depth) for depth in depths}, asked)
    files.write_text(out, page)
    typer.echo(page)


@bench.command("few", epilog="Example: python -m flows bench few --classes bottle,toothbrush")
def _few(
    data: _DATA = None,
    classes: _CLASSES = "",
    normals: Annotated[str, typer.Option(help="How many to learn from, e.g. 1,2,4,7.")] = "1,2,4,7",
    draws: Annotated[str, typer.Option(help="Which draws of them, e.g. 0,1.")] = "0,1",
    set_: _SET = None,
) -> None:
    """Learn from 1 to 7 normals, alone and with slightly shifted, brighter and darker copies, and judge the test."""
    from flows.experiments import limits

    found, params, numbers = _asked(data, classes, draws, ["train.steps=0", *(set_ or [])])
    counts = [int(count) for count in re.findall(r"\d+", normals)]
    typer.echo(limits.few(found, params, counts, numbers, _WORK).round(3).to_string(index=False))


@bench.command("int8", epilog="Example: python -m flows bench int8 --classes bottle,screw --seeds 0")
def _int8(
    data: _DATA = None,
    classes: _CLASSES = "",
    seeds: _SEEDS = "0,1,2",
    max_loss: Annotated[float, typer.Option(help="Of image AUROC, in the mean of a class. Exit code 1: more.")] = 0.01,
    set_: _SET = None,
) -> None:
    """Compare model.precision=int8 with float32 on labelled test images: what is lost, what is gained."""
    from flows.experiments import limits

    found, params, numbers = _asked(data, classes, seeds, ["train.steps=0", "compute.threads=1", *(set_ or [])])
    table = limits.precisions(found, params, numbers, _WORK)
    typer.echo(limits.precisions_page(table))
    limits.insist_on_precision(table, max_loss)


@bench.command("warm", epilog="Example: python -m flows bench warm brick --batches 3")
def _warm(
    category: Annotated[str, typer.Argument(help="A class whose data is built and checked.")],
    batches: Annotated[int, typer.Option(help="Number of batches in which the normals arrive.")] = 5,
) -> None:
    """Compare a chain of warm starts, each from the one before, with a training from scratch. Run again to go on."""
    from flows.experiments import warm_chain

    layout, params = workspace()
    typer.echo(warm_chain.bench(layout, params, category, batches))
