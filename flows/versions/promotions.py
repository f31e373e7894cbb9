"""The promotion log: who moved which alias, when, why, from where to where. Only appended to; the aliases follow it."""

import datetime
import getpass
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flows.adapters.tracking import Promotion, Registry
from flows.core import lineage, shared_files
from pvqae.core.errors import PvqaeError

ALIASES = ("champion", "challenger")
Loads = Callable[[Registry, str, str], None]  # model, version: `version_bundles.check_version`
_KEPT = ("git_sha", "data_sha", "manifest_sha256", "bundle_sha256", "trigger")  # lineage that an entry repeats


class PromotionError(PvqaeError):
    """An alias can't be moved as asked; the text says what to do."""


def lock_file(root: Path, dataset: str) -> Path:
    """Held while an alias moves: shorter than the dataset's lock, so a rollback never waits for a training."""
    return root / ".pvqae" / "locks" / f"{dataset}.aliases.lock"


def models_of(registry: Registry, dataset: str) -> list[str]:
    """Return the models of a dataset: `demo` has none of `demo2`, `a` none of `a-b`."""
    found = registry.owners(lineage.model_name(dataset, ""))
    return [name for name, owner in found.items() if owner is None or owner.dataset == dataset]


def check_owners(registry: Registry, dataset: str, categories: Iterable[str]) -> None:
    """Raise `PromotionError` where a class's model is that of another dataset's class."""
    known = registry.owners(lineage.model_name(dataset, ""))
    for owner in (lineage.Owner(dataset, category) for category in categories):
        name = lineage.model_name(dataset, owner.category)
        if (other := known.get(name)) not in (None, owner):
            raise PromotionError(
                f"{owner}: expected a model of its own, but {name} is that of {other}; give the dataset another name "
                "(--set data.name=...), or rename the folder of the class"
            )


def champions(log: Sequence[Promotion]) -> list[str]:
    """Return the champions that a rollback could go back to, oldest first; the last is the present one."""
    found: list[str] = []
    for entry in (entry for entry in log if entry.alias == "champion"):
        if entry.kind == "migration" and found[-1:] == [entry.from_version]:
            found.pop()  # the same detector in another form: nothing to go back to
        if entry.kind == "rollback":
            while found and found[-1] != entry.to_version:
                found.pop()
        if not found or found[-1] != entry.to_version:
            found.append(entry.to_version)
    return found


def complete(registry: Registry, name: str) -> None:
    """Make every alias what the log's last entry of it says, after a kill between log and alias or a move by hand.

    An alias whose version was deleted stays as it is; `held` tells of it.
    """
    last = {entry.alias: entry.to_version for entry in registry.promotions(name)}
    for alias, version in last.items():
        if registry.alias(name, alias) != version and registry.exists(name, version):
            registry.set_alias(name, alias, version)


def held(registry: Registry, name: str, alias: str = "champion") -> str | None:
    """Return the version that has an alias by the log, which nobody can edit on MLflow's page.

    By the registry where the log is silent; None where no version has it, or had.

    Raises `PromotionError` for a champion that was deleted while an earlier one is left, with the way back.
    """
    log = registry.promotions(name)
    said = next((entry.to_version for entry in reversed(log) if entry.alias == alias), None)
    if said is None:
        return registry.alias(name, alias)
    if registry.exists(name, said):
        return said
    if alias == "champion" and _left(registry, name, log):
        raise PromotionError(f"{name}: version {said}, the champion, was deleted; {way_back(registry, name)}")
    return None


def champion(registry: Registry, name: str) -> str | None:
    """Return the champion; None also where it was deleted: for callers that can do without."""
    try:
        return held(registry, name)
    except PromotionError:
        return None


def way_back(registry: Registry, name: str) -> str:
    """Say what gives a model a champion that has none, with commands that a test tries."""
    place = " ".join(shlex.quote(part) for part in _parts(registry, name))
    if left := _left(registry, name, registry.promotions(name)):
        command = f"python -m flows promote rollback {place} --reason 'the champion was deleted'"
        return f"go back to version {left[-1]}, the newest champion that is left: {command}"
    if challenger := held(registry, name, "challenger"):
        return f"let the gate judge version {challenger}: python -m flows promote run {place}"
    known = ", ".join(registry.owners(lineage.OURS)) or "none"
    return registry.astray(name) or f"run `python -m flows train` first; registered models: {known}"


def _parts(registry: Registry, name: str) -> tuple[str, str]:
    """Return dataset and class of a model, whose name alone does not say where one ends."""
    if owner := registry.owners(name).get(name):
        return owner.dataset, owner.category
    dataset, _, category = name.removeprefix(lineage.OURS).rpartition("-")
    return dataset, category


def owner_of(registry: Registry, model: str) -> lineage.Owner:
    """Return whose a registered model is. Raises `PromotionError` where there is none, or nothing says whose it is."""
    known = registry.owners(lineage.OURS)
    if found := known.get(model):
        return found
    if model in known:
        raise PromotionError(f"{model}: nothing says of which dataset and class it is; name them: DATASET CLASS")
    raise PromotionError(
        f"expected DATASET CLASS, or a registered model; found {model}; registered are {', '.join(known) or 'none'}"
    )


def _left(registry: Registry, name: str, log: Sequence[Promotion]) -> list[str]:
    return [version for version in champions(log) if registry.exists(name, version)]


def move(
    registry: Registry,
    name: str,
    alias: str,
    version: str,
    *,
    kind: str,
    reasons: tuple[str, ...],
    verdict: str = "",
    expected: str | None = None,
    present: str | None = None,
) -> Promotion:
    """Append an entry, then move the alias.

    `expected`: the version that the decision took for the alias' present one; `present`: what the log calls so, where
    that was deleted.

    Raises `PromotionError` when the alias was moved meanwhile.
    """
    present = present or registry.alias(name, alias) or lineage.NONE
    if expected is not None and present != expected:
        raise PromotionError(
            f"{name}: {alias} was version {expected} when this was decided, now it is {present}; run the command again"
        )
    tags = registry.version_tags(name, version)
    entry = Promotion(
        when=_now(registry.promotions(name)),
        who=getpass.getuser(),
        alias=alias,
        from_version=present,
        to_version=version,
        kind=kind,
        reasons=reasons,
        run=tags.get("mlflow_run", ""),
        verdict=verdict,
        lineage={key: tags[key] for key in _KEPT if key in tags},
    )
    registry.promote(name, alias, entry)
    return entry


def _now(log: Sequence[Promotion]) -> str:
    """Return UTC, but always after the last entry: the log's order must survive a clock that was set back."""
    now = datetime.datetime.now(datetime.UTC)
    if log:
        now = max(now, datetime.datetime.fromisoformat(log[-1].when) + datetime.timedelta(microseconds=1))
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rollback(
    registry: Registry, root: Path, dataset: str, name: str, reason: str, version: str = "", *,
    loads: Loads | None = None,
) -> Promotion:  # fmt: skip
    """Restore the newest champion before the present one that this code can load; pass over others, and log why.

    `version`: the one to take back, so that a killed rollback can be asked for again: what is taken back already is
    left so. `loads`: what loads a version, by default as scoring does.

    Raises `PromotionError` when no earlier one loads, when `version` is not champion, or without a reason.
    """
    if not reason.strip():
        raise PromotionError("a rollback needs a reason: --reason TEXT")
    if loads is None:
        from flows.versions import version_bundles  # a workspace and its processes: not for a log

        loads = version_bundles.check_version
    with shared_files.held(lock_file(root, dataset)):
        complete(registry, name)
        log = registry.promotions(name)
        known = _left(registry, name, log)
        present = next((entry.to_version for entry in reversed(log) if entry.alias == "champion"), "")
        if present and present not in known:  # deleted: to the newest that is left
            return _restored(registry, name, known, present, reason, version, loads)
        if version and known[-1:] != [version]:
            return _taken_back(name, version, [entry for entry in log if entry.alias == "champion"])
        if len(known) < 2:
            place = " ".join(map(shlex.quote, _parts(registry, name)))
            raise PromotionError(
                f"{name}: no earlier champion in the log; promote another version: "
                f"python -m flows promote run {place} --override REASON"
            )
        to, passed = _loadable(registry, name, known[:-1], loads)
        return move(registry, name, "champion", to, kind="rollback", reasons=(reason, *passed), expected=known[-1])


def _loadable(registry: Registry, name: str, known: Sequence[str], loads: Loads) -> tuple[str, tuple[str, ...]]:
    """Return the newest of `known` that loads, and a line on each that was passed over.

    Raises `PromotionError` where none does: a champion that can't score would stop a line that runs.
    """
    passed = []
    for version in reversed(known):
        try:
            loads(registry, name, version)
        except PvqaeError as error:
            passed.append(f"passed over version {version}, which can't be loaded: {error}")
        else:
            return version, tuple(passed)
    said = "\n".join(passed)
    raise PromotionError(f"{name}: the champion stays, no earlier one can be loaded by this code\n{said}")


def _restored(
    registry: Registry, name: str, known: Sequence[str], deleted: str, reason: str, version: str, loads: Loads
) -> Promotion:
    if version not in ("", deleted):
        raise PromotionError(
            f"{name}: expected version {version} as champion, found {deleted}, which was deleted; leave --version out"
        )
    if not known:
        raise PromotionError(f"{name}: version {deleted} was deleted; {way_back(registry, name)}")
    to, passed = _loadable(registry, name, known, loads)
    return move(registry, name, "champion", to, kind="rollback", reasons=(reason, *passed), present=deleted)


def _taken_back(name: str, version: str, moves: Sequence[Promotion]) -> Promotion:
    """Return the entry by which `version` was taken back, if that was the last move."""
    if moves and (moves[-1].kind, moves[-1].from_version) == ("rollback", version):
        return moves[-1]
    present = moves[-1].to_version if moves else lineage.NONE
    raise PromotionError(
        f"{name}: expected version {version} as champion, found {present}; see python -m flows promote log {name}"
    )
