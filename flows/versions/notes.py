"""What a person notes with a model: its champion is pinned, its class has another name, or is made no more.

A class that had a champion and whose folder is gone is told before anything is trained, with the three ways on.
"""

import datetime
import getpass
import json
import shlex
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path

from flows.adapters.tracking import Registry
from flows.core import lineage, shared_files
from flows.core.lineage import Owner
from flows.versions import promotions
from flows.versions.promotions import PromotionError

# Keys of notes; _FORMER: names of its class before, "/" between; _EVENT: of what happened, never written again.
_PINNED, _FORMER, _APPROVED, _EVENT = "pinned", "former_classes", "approved.", "event."


def remember(registry: Registry, name: str, kind: str, version: str, text: str) -> None:
    """Keep what happened to a model beside moves of its aliases, for its history: a pin, a wait, an approval."""
    when = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    values = {"kind": kind, "version": version, "who": getpass.getuser(), "text": text[:2000]}
    registry.note(name, f"{_EVENT}{when}.{uuid.uuid4().hex[:8]}", json.dumps(values))


def events(registry: Registry, name: str) -> list[tuple[str, dict[str, str]]]:
    """Return what `remember` has kept of a model, oldest first: when (ISO 8601, UTC), and kind, version, who, text."""
    kept = sorted((key, text) for key, text in registry.notes(name).items() if key.startswith(_EVENT))
    return [(key.removeprefix(_EVENT).rpartition(".")[0], json.loads(text)) for key, text in kept]


def without_data(registry: Registry, dataset: str, there: Collection[str]) -> list[Owner]:
    """Return the classes of a dataset that have a champion, were not retired, and are not among those `there`."""
    owners = registry.owners(lineage.model_name(dataset, "")).items()
    mine = [(name, owner) for name, owner in owners if owner and owner.dataset == dataset]
    return sorted(
        owner
        for name, owner in mine
        if owner.category not in there and promotions.champion(registry, name) and not retired(registry, name)
    )


def retired(registry: Registry, name: str) -> str:
    """Return when, by whom and why a model was retired; "" where it was not."""
    return registry.notes(name).get(lineage.RETIRED, "")


def check(registry: Registry, dataset: str, there: Collection[str], asked: Collection[str]) -> None:
    """Raise `PromotionError` where a class with a champion has no images any more.

    `there`: classes of the dataset's folder; `asked`: those of data.categories, empty for all. A run that is asked for
    some classes says nothing of the others.
    """
    gone = [owner for owner in without_data(registry, dataset, there) if not asked or owner.category in asked]
    if not gone:
        return
    new = [name for name in there if not promotions.champion(registry, lineage.model_name(dataset, name))]
    lines = [line for owner in gone for line in _ways(owner, new)]
    raise PromotionError("\n".join([*lines, "Nothing was trained. Choose, then run again."]))


def _ways(owner: Owner, new: Iterable[str]) -> list[str]:
    place = f"{shlex.quote(owner.dataset)} {shlex.quote(owner.category)}"
    to = " or ".join(map(shlex.quote, new)) or "NEW"
    return [
        f"{owner}: it has a champion, but data/raw/{owner.dataset} has no folder of it. Either",
        f"  its folder has another name now: python -m flows promote rename {place} {to}",
        f"  it is made no more: python -m flows promote retire {place} --reason TEXT",
        "  it was removed by mistake: bring its folder back where the images come from",
    ]


def _signed(reason: str, what: str) -> str:
    """Return a person's reason with the day and the name. Raises `PromotionError`, which says `what` needs one."""
    if not reason.strip():
        raise PromotionError(f"{what} needs a reason: --reason TEXT")
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d} by {getpass.getuser()}: {reason}"


def retire(registry: Registry, root: Path, owner: Owner, reason: str) -> str:
    """Note that a class is made no more; its versions and its log stay. Return the note.

    A training of the class revives it. Raises `PromotionError` without a reason or a model.
    """
    note = _signed(reason, "to retire a class")
    name = lineage.model_name(owner.dataset, owner.category)
    with shared_files.held(promotions.lock_file(root, owner.dataset)):
        promotions.owner_of(registry, name)
        registry.note(name, lineage.RETIRED, note)
        remember(registry, name, "retired", "", reason)
    return note


def revive(registry: Registry, name: str) -> None:
    """Forget that a model was retired: its class is trained again."""
    if retired(registry, name):
        registry.note(name, lineage.RETIRED, "")


def rename(registry: Registry, root: Path, owner: Owner, to: str) -> str:
    """Give the model of a class the class's new name, with all versions, aliases and the log; return the model's name.

    Raises `PromotionError` where there is no such model, or one of the new name.
    """
    before, after = (lineage.model_name(owner.dataset, name) for name in (owner.category, to))
    with shared_files.held(promotions.lock_file(root, owner.dataset)):
        promotions.owner_of(registry, before)
        if after in registry.owners(after):
            raise PromotionError(f"{after} is registered already: a class with a history of its own; retire {before}")
        former = registry.notes(before).get(_FORMER, "")
        registry.rename(before, after, Owner(owner.dataset, to))
        registry.note(after, _FORMER, "/".join(filter(None, (former, owner.category))))
    return after


def names_of(registry: Registry, name: str, category: str) -> list[str]:
    """Return the names that the class of a model has or had, the present one first."""
    return [category, *filter(None, reversed(registry.notes(name).get(_FORMER, "").split("/")))]


def pinned(registry: Registry, name: str) -> str:
    """Return which version of a model is pinned, when, by whom and why; "" for none."""
    return registry.notes(name).get(_PINNED, "")


def pin(registry: Registry, root: Path, owner: Owner, reason: str) -> str:
    """Pin the present champion of a class; return the note.

    Raises `PromotionError` without a reason or a champion.
    """
    signed = _signed(reason, "a pin")
    name = lineage.model_name(owner.dataset, owner.category)
    with shared_files.held(promotions.lock_file(root, owner.dataset)):
        promotions.complete(registry, name)
        version = promotions.held(registry, name)
        if not version:
            raise PromotionError(f"{name}: no champion to pin; {promotions.way_back(registry, name)}")
        note = f"version {version}, {signed}"
        registry.note(name, _PINNED, note)
        remember(registry, name, "pinned", version, reason)
    return note


def unpin(registry: Registry, root: Path, owner: Owner) -> str:
    """Take the pin of a class's champion out; return what it said, "" where there was none."""
    name = lineage.model_name(owner.dataset, owner.category)
    with shared_files.held(promotions.lock_file(root, owner.dataset)):
        note = pinned(registry, name)
        if note:
            registry.note(name, _PINNED, "")
            remember(registry, name, "unpinned", "", note)
    return note


def approved(registry: Registry, name: str, version: str) -> str:
    """Return when, by whom and why a version was approved; "" where nobody has."""
    return registry.notes(name).get(f"{_APPROVED}{version}", "")


def approve(registry: Registry, root: Path, owner: Owner, version: str, reason: str) -> str:
    """Note that a person approves a version as champion, by default the challenger; return the note.

    Raises `PromotionError` without a reason or such a version, or for whoever had it trained: two persons have to look.
    """
    note = _signed(reason, "an approval")
    name, person = lineage.model_name(owner.dataset, owner.category), getpass.getuser()
    with shared_files.held(promotions.lock_file(root, owner.dataset)):
        promotions.complete(registry, name)
        version = version or promotions.held(registry, name, "challenger") or ""
        if not version or not registry.exists(name, version):
            raise PromotionError(
                f"{name}: no version {version or 'is challenger'}; see python -m flows promote log {name}"
            )
        log = registry.promotions(name)
        makers = {entry.who for entry in log if entry.kind == "challenger" and entry.to_version == version}
        if person in makers:
            raise PromotionError(
                f"{name} version {version}: expected the approval of a second person, found {person}, who had it "
                "trained; let somebody else run this, under a name of the system's own"
            )
        registry.note(name, f"{_APPROVED}{version}", note)
        remember(registry, name, "approved", version, reason)
    return note


def refuse_pinned(registry: Registry, name: str) -> None:
    """Raise `PromotionError` where the champion is pinned: a person's own move takes the pin out first."""
    if note := pinned(registry, name):
        raise PromotionError(f"{name}: the champion is pinned ({note}); first: python -m flows promote unpin {name}")
