"""`python -m flows bench` and `experiment`: measure what the documentation claims, answer open questions."""

import re
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import project, registry
from pvqae.cli.console import workspace

app = typer.Typer()
_DATA = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder with mvtec/, btad/, mtsd/ or folder/, or one such layout; repeatable. Default: $PVQAE_DATASETS, "
        "several separated as in $PATH, or ../shared/datasets."
    ),
]
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
    seeds: Annotated[str, typer.Option(help="E.g. 0,1,2.")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="E.g. pvqae,patchcore_1,control; empty: all.")] = "",
    rivals: Annotated[
        bool, typer.Option("--rivals", help="Run all rivals, too: other libraries, installed now.")
    ] = False,
    rival: Annotated[list[str] | None, typer.Option(help="Run this rival, e.g. anomalib_padim; repeatable.")] = None,
    rival_minutes: Annotated[float, typer.Option(min=0.1, help="The longest that a rival may take on a class.")] = 30,
    out: Annotated[Path, typer.Option(help="Folder for accuracy.md, .json and .csv.")] = Path("reports/accuracy"),
    quick: Annotated[bool, typer.Option("--quick", help="The demo, small and barely trained: does it run?")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override one param: key=value.")] = None,
) -> None:
    """Compare our detector, PatchCore and a no-model control on the same test images, splits, seeds and metrics.

    Rivals are anomalib and AnomaVision on the same frozen features, each in an environment of its own below
    .pvqae/rivals. If it is interrupted, run it again to continue.
    """
    from flows.experiments import accuracy, subjects
    from pvqae.core import config, runtime

    asked = accuracy.known_methods(re.findall(r"[^\s,]+", methods), ("all",) if rivals else rival or ())
    names = re.findall(r"[^\s,]+", classes or ("demo" if quick else ""))
    params = config.load("params.yaml", (*(accuracy.QUICK if quick else ()), *(set_ or [])))
    runtime.plan(params.compute, 1).apply()
    work = Path(".pvqae/bench")
    chosen = subjects.load(
        subjects.choose(subjects.find_places(subjects.dataset_roots(data or ())), names), work / "data", params
    )
    numbers = [int(seed) for seed in re.findall(r"\d+", "0" if quick else seeds)]

    def tell(words: str) -> None:
        typer.echo(words, err=True)

    result = accuracy.run(chosen, params, numbers, work, methods=asked, minutes=rival_minutes, tell=tell)
    result.show()
    result.write(out)
    typer.echo(out / "accuracy.md")


@bench.command(
    "readouts", epilog="Example: python -m flows bench readouts --classes bottle,toothbrush,screw,commutator"
)
def _readouts(
    data: _DATA = None,
    classes: Annotated[str, typer.Option(help="E.g. bottle,screw; empty: all found.")] = "",
    seeds: Annotated[str, typer.Option(help="E.g. 0,1,2.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/readouts.md"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override one param: key=value.")] = None,
) -> None:
    """Read memories out in every way on real defects; each class judges what the other classes would have chosen."""
    from flows.experiments import readouts, subjects
    from pvqae.core import config, files, runtime

    params = config.load("params.yaml", tuple(set_ or ()))
    runtime.plan(params.compute, 1).apply()
    work, numbers = Path(".pvqae/bench"), [int(seed) for seed in re.findall(r"\d+", seeds)]
    places = subjects.choose(subjects.find_places(subjects.dataset_roots(data or ())), re.findall(r"[^\s,]+", classes))
    table = readouts.run(subjects.load(places, work / "data", params), params, numbers, work)
    files.write_text(out, readouts.page(table, readouts.about(params, numbers)))
    typer.echo(out)


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


@bench.command("warm", epilog="Example: python -m flows bench warm brick --batches 3")
def _warm(
    category: Annotated[str, typer.Argument(help="A class whose data is built and checked.")],
    batches: Annotated[int, typer.Option(help="Number of batches in which the normals arrive.")] = 5,
) -> None:
    """Compare a chain of warm starts, each from the one before, with a training from scratch. Run again to go on."""
    from flows.experiments import warm_chain

    layout, params = workspace()
    typer.echo(warm_chain.bench(layout, params, category, batches))
