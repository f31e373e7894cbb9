"""Commands that choose versions: promote run, log, rollback, power; migrate."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import Json, project, project_root, registry
from pvqae.cli.console import FAILED, INSUFFICIENT, console, quiet, to_json

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from flows.adapters.tracking import Promotion, Registry
    from flows.core.lineage import Owner

app = typer.Typer()
promote = typer.Typer(no_args_is_help=True, help="Choose, inspect or roll back the champion.")
PANEL = "Versions in use"
Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="The dataset's name; or the whole pvqae-DATASET-CLASS, and no CLASS.")
]
Class = Annotated[str, typer.Argument(metavar="CLASS", help="The class of the model pvqae-DATASET-CLASS.")]
Reason = typer.Option(help="The reason; kept in the promotion log.")
_HEAD = ("when", "model", "alias", "from", "to", "kind", "verdict", "who", "why", "code", "data")
_NARROW = ("when", "model", "from", "to", "kind", "why")
_WIDE = 150  # columns of a terminal from which all of _HEAD is readable


def _owner(found: "Registry", dataset: str, category: str) -> tuple[str, str]:
    """Return dataset and class, of which a model's whole name may stand for both."""
    from flows.versions import promotions

    if category:
        return dataset, category
    owner = promotions.owner_of(found, dataset)
    return owner.dataset, owner.category


def _opened(dataset: str, category: str) -> "tuple[Path, Registry, Owner]":
    """Return project and registry, also where params.yaml is invalid, and whose model is meant."""
    root = project()
    from flows.core.lineage import Owner

    found = registry(root, strict=False)
    return root, found, Owner(*_owner(found, dataset, category))


def _noted(found: "Registry", root: "Path", owner: "Owner") -> None:
    """Show a person's note on the page of the dataset's history."""
    from flows.versions import history

    history.refresh(found, root, owner.dataset)


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
        print(*verdict.lines, verdict.sentence(lineage.model_name(dataset, category)), *verdict.untold, sep="\n")
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
    exclude_data: Annotated[
        bool, typer.Option("--exclude-data", help="And take the images that only it had learnt out of the dataset.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore the newest earlier champion that can be loaded. The gate does not promote what was taken back again."""
    with quiet(as_json):
        root = project()
        from flows.adapters import notifications
        from flows.core import lineage, shared_files
        from flows.versions import history, notes, promotions, report_page
        from flows.workspace import workspace

        found = registry(root, strict=False)
        dataset, category = _owner(found, dataset, category)
        name = lineage.model_name(dataset, category)
        promotions.check_owners(found, dataset, [category])
        notes.refuse_pinned(found, name)
        entry = promotions.rollback(found, root, dataset, name, reason, version)
        with shared_files.tried(workspace.lock_file(root, dataset)) as free:
            if free:  # else a flow works on the dataset, which writes the page at its end; a rollback waits for nothing
                history.write(found, root, dataset)
                report_page.refresh(found, root, dataset, category)
        text = f"{name}: champion is version {entry.to_version} again, version {entry.from_version} was taken back"
        subject = f"{dataset} {category} version {entry.from_version}"
        news = notifications.News("rolled_back", dataset, subject, text, name, entry.from_version, entry.reasons)
        notifications.tell(root, news)
    if as_json:
        print(to_json(entry))
    else:
        print(*entry.reasons[1:], sep="\n", end="\n" * bool(entry.reasons[1:]))
        print(text)
    if exclude_data:
        from flows.review import review

        with quiet(as_json):
            owner = lineage.Owner(dataset, category)
            print(*review.exclude(root, found, owner, entry, partial(print, file=sys.stderr)), sep="\n")


@promote.command("pin", epilog="Example: python -m flows promote pin demo brick --reason 'audit until May'")
def _pin(dataset: Dataset, reason: Annotated[str, Reason], category: Class = "") -> None:
    """Keep the present champion: the gate judges challengers, but moves nothing until `unpin`."""
    root, found, owner = _opened(dataset, category)
    from flows.versions import notes

    print(f"the champion of {owner} is pinned: {notes.pin(found, root, owner, reason)}")
    _noted(found, root, owner)


@promote.command("unpin", epilog="Example: python -m flows promote unpin demo brick")
def _unpin(dataset: Dataset, category: Class = "") -> None:
    """Let the gate, overrides and rollbacks move the champion again."""
    root, found, owner = _opened(dataset, category)
    from flows.versions import notes

    note = notes.unpin(found, root, owner)
    print(f"the champion of {owner} is free; it was pinned: {note}" if note else f"{owner}: nothing was pinned")
    _noted(found, root, owner)


@promote.command("approve", epilog="Example: python -m flows promote approve demo brick --reason 'saw its misses'")
def _approve(
    dataset: Dataset,
    reason: Annotated[str, Reason],
    category: Class = "",
    version: Annotated[str, typer.Option(help="The version; default: the challenger.")] = "",
) -> None:
    """Approve a version as a second person: where gate.approval is set, no other becomes champion."""
    root, found, owner = _opened(dataset, category)
    from flows.core.lineage import model_name
    from flows.versions import notes

    note = notes.approve(found, root, owner, version, reason)
    print(
        f"{owner}: approved {note}\npromote it: python -m flows promote run {model_name(owner.dataset, owner.category)}"
    )
    _noted(found, root, owner)


@promote.command("retire", epilog="Example: python -m flows promote retire demo brick --reason 'made no more'")
def _retire(dataset: Dataset, reason: Annotated[str, Reason], category: Class = "") -> None:
    """Note that a class is made no more: trainings go on without its folder. Its versions and its log stay."""
    root, found, owner = _opened(dataset, category)
    from flows.versions import notes

    print(f"class {owner.category} of {owner.dataset} is retired: {notes.retire(found, root, owner, reason)}")
    _noted(found, root, owner)


@promote.command("rename", epilog="Example: python -m flows promote rename demo brick tile")
def _rename(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's name.")],
    category: Annotated[str, typer.Argument(metavar="CLASS", help="The name that the class had.")],
    to: Annotated[str, typer.Argument(metavar="NEW", help="The name that its folder has now.")],
) -> None:
    """Give a class's model the class's new name, with all its versions, aliases and its log."""
    root = project()
    from flows.core.lineage import Owner
    from flows.versions import notes

    found = registry(root, strict=False)
    print(f"class {category} of {dataset} is {notes.rename(found, root, Owner(dataset, category), to)} now")


@promote.command("power", epilog="Example: python -m flows promote power --draws 200")
def _power(draws: Annotated[int, typer.Option(min=1, help="Simulated gates per row.")] = 500) -> None:
    """Simulate how reliably the gate decides with the project's limits, for several numbers of gate parts."""
    root = project_root()
    from flows.gate import power
    from pvqae.core import config

    console().print(power.table(config.load(root / "params.yaml").gate, draws))


@app.command("migrate", epilog="Example: python -m flows migrate --dry-run", rich_help_panel=PANEL)
def _migrate(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME ...]", help="Models, pvqae-DATASET-CLASS; default: all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Write champions and challengers of an older bundle format again in today's, as versions with the same scores.

    Exit code 1: a version can't be migrated; the line says why.
    """
    with quiet(as_json):
        root = project()
        from flows.versions import migration

        say = partial(print, flush=True)
        found = migration.run(registry(root, strict=False), root, tuple(names or ()), dry_run, say)
    if as_json:
        print(to_json(found))
    elif not found:
        print("no version is champion or challenger: nothing to migrate")
    if any(item.failed for item in found):
        raise typer.Exit(FAILED)
