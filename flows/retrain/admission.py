"""The part of a retraining that holds the dataset's lock: new images become a DVC version, the facts are read."""

import datetime
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.adapters import git
from flows.adapters.landing import Landing, Object
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Dvc, Versioning
from flows.core import classes, lineage
from flows.retrain import arrivals, gate_normals, watch
from flows.retrain.arrivals import Champions
from flows.retrain.gate_normals import GateNormal
from flows.retrain.index import Index
from flows.retrain.ledger import Entry, IntakePaths, LabelLog, Ledger, Taken
from flows.retrain.retrain_policy import ClassFacts, Facts
from flows.versions import notes, promotions
from flows.workspace import workspace
from pvqae.core.config import Params
from pvqae.core.errors import DataError
from pvqae.core.files import digest
from pvqae.core.layout import ARRIVED, Layout
from pvqae.datasets import arrivals as arrived
from pvqae.datasets import build, sources
from pvqae.datasets.layouts import Found

LEARNT = ("train", "calibrate")  # splits that a new version learns from, or sets its threshold on


def with_dataset(
    project: Path, params: Params, tracking: Registry, asked: Facts, dry_run: bool, say: Callable[..., Any]
) -> tuple[Taken, Facts]:
    """Hold the dataset's lock; take in what arrived and complete the facts of the decision in `asked`."""
    name, layout, paths = params.data.name, Layout(project, params.data.name), IntakePaths(project, params.data.name)
    with ExitStack() as stack:
        dvc = Dvc(project, stack.enter_context(workspace.working_on(project, name, say)))
        if dvc.data_hash(name) and not layout.raw.is_dir():  # first the version: nothing comes in where it is damaged
            dvc.checkout(name)
        categories = classes.wanted(params, layout.raw)
        promotions.check_owners(tracking, name, categories)
        notes.check(tracking, name, classes.there(params, layout.raw), params.data.categories)
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        champions = Champions(tracking, name, temporary, params.retrain.screen_margin)
        ledger = Ledger(paths.ledger)
        if dry_run:
            taken = _would_take(project, params, ledger, categories, champions)
        else:
            taken = _take_in(paths, params, ledger, categories, champions)
            admit(paths, layout.raw, ledger, dvc, recorder(project, params))
            if params.flow.push and taken.count("accepted"):
                dvc.push()
            taken = replace(taken, notes=_doubts(gate_normals.look(paths, params, champions), name))
        found = sources.scan(params.data.source, layout.raw, categories, params.data)
        return taken, _facts_of(asked, tracking, dvc, found, build.splits_of(found, params), ledger, paths, taken)


def _doubts(found: Sequence[GateNormal], dataset: str) -> tuple[str, ...]:
    """Say what the champions find odd among the normals of the gate."""
    if not found:
        return ()
    first = found[0]
    return (
        f"{len(found)} normals of the gate score far above what their champions know, {first.path} highest "
        f"({first.score:.3g}, above {first.limit:.3g}): look at them with `python -m flows review --dataset {dataset}`",
    )


def _would_take(
    project: Path, params: Params, ledger: Ledger, categories: Sequence[str], champions: Champions
) -> Taken:
    """Return what would be looked at; download and change nothing."""
    if (area := watch.landing_area(project, params)) is None:
        return Taken()
    items, others = _new_objects(area, params, ledger, categories, champions)
    images = [item for item in items if arrivals.is_image(item.key)]
    counts = Counter(item.key.partition("/")[0] for item in images)
    return replace(others, looked=dict(counts), others=len(items) - len(images))


def _new_objects(
    area: Landing, params: Params, ledger: Ledger, categories: Sequence[str], champions: Champions
) -> tuple[list[Object], Taken]:
    waits = champions.waits(categories)
    ready = [category for category, why in waits.items() if not why]
    return arrivals.new_objects(area, ledger, categories, ready, params.landing.max_objects, waits)


def _take_in(
    paths: IntakePaths, params: Params, ledger: Ledger, categories: Sequence[str], champions: Champions
) -> Taken:
    """Look at every new object of the landing area; keep the accepted ones next to the dataset."""
    ledger.release(paths)
    if (area := watch.landing_area(paths.root, params)) is None:
        return Taken()
    items, others = _new_objects(area, params, ledger, categories, champions)
    if not items:
        ledger.write_lists(paths)
        return others
    known = Index.of(paths, params)
    return arrivals.Intake(area, paths, ledger, known, champions.screen, params).take(items, others)


def recorder(project: Path, params: Params) -> Callable[[str], str]:
    """Return what commits the dataset's .dvc file on `pvqae/data`, under the path that train runs use too."""
    name = params.data.name
    path = f"data/raw/{name}.dvc"

    def record(message: str) -> str:
        commit = git.record(project, {f"{name}/{path}": project / path}, message)
        if unsent := git.share(project, params.flow.git_remote):
            print(unsent, file=sys.stderr, flush=True)
        return commit

    return record


def admit(
    paths: IntakePaths, raw: Path, ledger: Ledger, dvc: Versioning, record: Callable[[str], str]
) -> tuple[Entry, ...]:
    """Bring all accepted images into the dataset at `raw`, and what was withdrawn out of it, as one DVC version.

    Return the entries of the accepted ones. `record` commits the version with a message and returns the commit. An
    accepted image whose file is gone or changed is reported and counts as new again: the next run fetches it.
    """
    accepted, withdrawn = [], ledger.entries("withdrawn")
    for entry in ledger.entries("accepted"):
        try:
            _copy_in(paths, entry, raw)
            accepted.append(entry)
        except DataError as error:
            print(error, file=sys.stderr, flush=True)
            ledger.append([replace(entry, state="lost", reason=str(error))])
    for entry in (*accepted, *withdrawn):
        for file in _places(raw, entry):
            if entry.state == "withdrawn" or file.parent != raw / ARRIVED / entry.category / entry.part:
                file.unlink()
    if not accepted and not withdrawn:
        return ()
    signed = LabelLog(paths.labels).signatures(ledger.entries("accepted", "versioned"))
    arrived.sign(raw, signed, {entry.name for entry in (*accepted, *withdrawn)})
    dvc.version_dataset(paths.dataset)
    record(_message(paths.dataset, accepted, withdrawn, signed))
    version = dvc.data_hash(paths.dataset)
    versioned = [replace(entry, state="versioned", reason=version) for entry in accepted]
    ledger.append([*versioned, *(replace(entry, state="quarantined") for entry in withdrawn)])
    shutil.rmtree(paths.home / "staged", ignore_errors=True)
    return tuple(versioned)


def _places(raw: Path, entry: Entry) -> list[Path]:
    """Return where the file of an entry is in the dataset: a label moves it, and a person may sort defects by kind."""
    own = raw / ARRIVED / entry.category
    folders = [own / "good", own / "gate", *own.glob("defect/*")]
    return [folder / entry.name for folder in folders if (folder / entry.name).is_file()]


def file_of(paths: IntakePaths, entry: Entry) -> Path | None:
    """Return the file of an accepted or versioned entry, None where it is gone."""
    kept = paths.file(entry)
    found = [kept] if kept else _places(Layout(paths.root, paths.dataset).raw, entry)
    return next((file for file in found if file.is_file()), None)


def _copy_in(paths: IntakePaths, entry: Entry, raw: Path) -> None:
    source, target = paths.file(entry), raw / ARRIVED / entry.category / entry.part / entry.name
    if target.exists() and digest(target) == entry.sha256:
        return
    if not source or not source.exists() or digest(source) != entry.sha256:
        raise DataError(
            f"{source}: the accepted image {entry.key} with sha256 {entry.sha256} is gone or changed; if it is still "
            "in the landing area, the next run fetches it again, else put it back there"
        )
    paths.copy(source, target)


def _message(
    dataset: str, entries: Sequence[Entry], withdrawn: Sequence[Entry], signed: Sequence[Mapping[str, str]]
) -> str:
    """Word the commit: what came in and went out, by class, then each file with the object it was, and who labelled it
    when.
    """
    who = {row["sha256"]: f", labelled {row['label']} by {row['who']} at {row['when']}" for row in signed}
    lines = sorted(f"{entry.category}/{entry.part}/{entry.name} taken out, {entry.reason}" for entry in withdrawn)
    lines += sorted(
        # A key may hold anything, also line breaks; a name is checked when it is given.
        re.sub(r"[^\x20-\x7e]", "?", f"{entry.category}/{entry.part}/{entry.name} from {entry.key}")
        + who.get(entry.sha256, "")
        for entry in entries
    )
    came = "labelled" if all(entry.sha256 in who for entry in entries) else "arrived"
    did = [f"{len(entries)} images {came} ({counted(entries)})"] if entries else []
    did += [f"{len(withdrawn)} images taken out ({counted(withdrawn)})"] if withdrawn else []
    return f"{dataset}: {', '.join(did)}\n\n" + "\n".join(lines) + "\n"


def counted(entries: Sequence[Entry]) -> str:
    """Return how many entries there are of each class and part, in words."""
    counts = Counter(f"{entry.category}/{entry.part}" for entry in entries)
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


def _facts_of(
    asked: Facts, registry: Registry, dvc: Versioning, found: Sequence[Found], chosen: Mapping[str, str],
    ledger: Ledger, paths: IntakePaths, taken: Taken,
) -> Facts:  # fmt: skip
    """Complete `asked` by the facts of every class, from the registry, the data versions and the ledger.

    `chosen`: the split of each image of `found` by its sample_id.
    """
    name, raw, now = paths.dataset, Layout(paths.root, paths.dataset).raw, datetime.datetime.now(datetime.UTC)
    held = Counter(e.category for e in ledger.entries("review") if (file := paths.file(e)) and file.exists())

    def facts(category: str) -> ClassFacts:
        model = lineage.model_name(name, category)
        champion = promotions.champion(registry, model) or ""
        normals = [f for f in found if f.category == category and f.label == "normal"]
        seen = dvc.listing(registry.version_tags(model, champion)["data_hash"]) if champion else None
        fresh = taken.looked.get(category, 0)
        trained, judged = ("", False) if fresh else _of_this_data(registry, model, dvc.data_hash(name))
        new = Counter(
            chosen[f.sample_id] for f in normals if seen is not None and f.path.relative_to(raw).as_posix() not in seen
        )
        return ClassFacts(
            category=category,
            champion=champion,
            age_days=_age_days(registry, model, champion, now) if champion else None,
            new_normals=None if seen is None else fresh + sum(new[split] for split in LEARNT),
            new_tests=new["test"],
            new_gates=new["gate"],
            unseen=fresh,
            in_review=held[category],
            trained=trained,
            judged=judged,
        )

    return replace(asked, classes=tuple(facts(category) for category in sorted({f.category for f in found})))


def _of_this_data(registry: Registry, model: str, data_hash: str) -> tuple[str, bool]:
    """Return the newest version made of a version of the data, "" for none, and whether the gate is done with it.

    A version without any alias and verdict does not count: a training that was killed then has still to name it.
    """
    version = registry.find(model, {"data_hash": data_hash}) or ""
    if not version:
        return "", False
    if promotions.champion(registry, model) == version or registry.version_tags(model, version).get("gate_outcome"):
        return version, True
    return (version, False) if promotions.held(registry, model, "challenger") == version else ("", False)


def _age_days(registry: Registry, model: str, version: str, now: datetime.datetime) -> float | None:
    """Return the days since `version` first got an alias, at its registration; None when the log does not say."""
    moves = sorted(entry.when for entry in registry.promotions(model) if entry.to_version == version)
    return (now - datetime.datetime.fromisoformat(moves[0])).total_seconds() / 86400 if moves else None
