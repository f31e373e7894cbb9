"""`python -m flows promote`: which version is champion."""

import sys
from typing import Annotated

import typer

from flows.cli.shared import Class, Dataset, Json, project, project_root, registry
from pvqae.cli.console import FAILED, INSUFFICIENT, console, quiet, to_json

app = typer.Typer(no_args_is_help=True, help="Which version is champion.")
Reason = typer.Option(help="Why; kept in the promotion log.")


@app.command("run", epilog="Example: python -m flows promote run demo brick --reason 'new lamp'")
def run(
    dataset: Dataset,
    category: Class,
    reason: Annotated[str, Reason] = "asked for",
    override: Annotated[str, typer.Option(help="Promote whatever the rules say, for this reason.")] = "",
    as_json: Json = False,
) -> None:
    """Judge the challenger against the champion on the frozen gate images; the alias moves if every rule is kept.

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
        print(*verdict.lines, promote.summary(lineage.model_name(dataset, category), verdict), sep="\n")
    if not verdict.promoted:
        raise typer.Exit(INSUFFICIENT if verdict.outcome == "insufficient" else FAILED)


@app.command("log", epilog="Example: python -m flows promote log demo")
def log(
    dataset: Annotated[str, typer.Argument(help="Only of this dataset.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Every entry whole, for programs.")] = False,
) -> None:
    """Every move of an alias: when, who, from which version to which, why, on what verdict."""
    root = project()
    from flows.core import lineage
    from flows.versions import promotions

    found = registry(root, strict=False)
    names = promotions.models_of(found, dataset) if dataset else found.models(lineage.OURS)
    entries = {name: found.promotions(name) for name in names}
    if not entries:
        known = ", ".join(found.models("")) or "none"
        print(f"no model pvqae-{dataset}... is registered; there are: {known}", file=sys.stderr)
    if as_json:
        print(promotions.as_json(entries))
        return
    screen = console()
    screen.print(promotions.table(entries, narrow=screen.width < promotions.WIDE))


@app.command("rollback", epilog="Example: python -m flows promote rollback demo brick --reason 'misses scratches'")
def rollback(
    dataset: Dataset,
    category: Class,
    reason: Annotated[str, Reason],
    version: Annotated[str, typer.Option(help="Take back this one only: then it is safe to ask twice.")] = "",
    as_json: Json = False,
) -> None:
    """Restore the champion before the present one. The gate does not promote the one taken back again."""
    with quiet(as_json):
        root = project()
        from flows.core import lineage, locks
        from flows.versions import promotions, versions
        from flows.workspace import workspace

        found, name = registry(root, strict=False), lineage.model_name(dataset, category)
        promotions.check_owners(found, dataset, [category])
        entry = promotions.rollback(found, root, dataset, name, reason, version)
        with locks.tried(workspace.lock_file(root, dataset)) as free:
            if free:  # else a flow works on the dataset, which writes the page at its end; a rollback waits for nothing
                versions.refresh(found, root, dataset, category)
    if as_json:
        print(to_json(entry))
    else:
        print(f"{name}: champion is version {entry.to_version} again, version {entry.from_version} was taken back")


@app.command("power", epilog="Example: python -m flows promote power --draws 200")
def power(draws: Annotated[int, typer.Option(min=1, help="Simulated gates per line.")] = 500) -> None:
    """By simulation with the project's limits: how surely the gate decides, by the number of parts at it."""
    root = project_root()
    from flows.gate import gate_power
    from pvqae.core import config

    console().print(gate_power.table(config.load(root / "params.yaml").gate, draws))
