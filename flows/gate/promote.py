"""The gate: which version is champion. Judges the challenger, records the verdict, moves the alias, logs the move."""

import datetime
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flows.adapters import notifications
from flows.adapters.notifications import News
from flows.adapters.tracking import Promotion, Registry, RegistryError
from flows.core import lineage, shared_files
from flows.gate import measure as measuring
from flows.gate.measure import Findings, Pair
from flows.gate.rules import Verdict, judge
from flows.versions import history, notes, promotions, report_page
from flows.versions.promotions import PromotionError
from flows.versions.version_bundles import check_loads, fetch
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.config import Event, Gate
from pvqae.core.errors import DataError, FormatError, IntegrityError, PvqaeError
from pvqae.core.files import digest, write_text
from pvqae.core.progress import working
from pvqae.samples import manifest

_Measure = Callable[[Pair], Findings]
_Loads = Callable[[Path], None]  # a bundle's folder; raises what `check_loads` does


@dataclass(frozen=True)
class VerdictRequest:
    """Who wants a verdict and why; `override`: the reason to promote whatever the rules say."""

    trigger: str
    reason: str
    override: str | None = None


def show(root: Path, dataset: str, category: str = "") -> None:
    """Write the dataset's pages: the verdict on a class, or on all, and where the aliases are now."""
    from flows.adapters.registry import open_registry

    root = root.resolve()
    registry, _ = open_registry(root, config.load(root / "params.yaml").flow.tracking_uri)
    with shared_files.held(workspace.lock_file(root, dataset)):
        history.write(registry, root, dataset)
        report_page.refresh(registry, root, dataset, category)


def run(
    root: Path, dataset: str, category: str, *, trigger: str, reason: str, override: str | None = None,
    page: bool = True,
) -> Verdict:  # fmt: skip
    """Judge the class's challenger against its champion by the `gate` section of the project's params.yaml.

    The champion alias moves if the verdict allows it or `override` says so. The limits are the project's, not those of
    the run that made the challenger: no run loosens its own gate. Without `page` the caller writes the dataset's page
    by `show`, once for many classes. Raises `PromotionError` when there is no such model, `IntegrityError` for a bundle
    or gate image that is not the recorded one, `DataError` when gate images are missing.
    """
    from flows.adapters.registry import open_registry

    root = root.resolve()
    params = config.load(root / "params.yaml")
    registry, _ = open_registry(root, params.flow.tracking_uri)
    with workspace.working_on(root, dataset) as supervisor:

        def measure(pair: Pair) -> Findings:
            space = _workspace_of(root, params, dataset, pair.tags["manifest_sha256"])
            return measuring.measure(space, category, pair, params.gate, params.compute, supervisor)

        asked = VerdictRequest(trigger, reason, override)
        verdict = decide(registry, root, dataset, category, measure, params.gate, asked, loads=check_loads)
    verdict = _told(root, dataset, category, verdict)
    _show_in_prefect(lineage.model_name(dataset, category), verdict)
    if page:
        show(root, dataset, category)
    return verdict


def _told(root: Path, dataset: str, category: str, verdict: Verdict) -> Verdict:
    """Tell people of a verdict; return it with what did not reach them."""
    name = lineage.model_name(dataset, category)
    if verdict.version == verdict.champion:  # nothing was judged
        return verdict
    event: Event = "promoted" if verdict.promoted else "held" if verdict.held else "refused"
    subject = f"{dataset} {category} version {verdict.version}"
    news = News(event, dataset, subject, verdict.sentence(name), name, verdict.version, verdict.lines)
    return replace(verdict, untold=notifications.tell(root, news))


def _workspace_of(root: Path, params: config.Params, dataset: str, manifest_sha256: str) -> workspace.Workspace:
    """Return the workspace that still has the manifest of a version. Raises `DataError` when none has."""
    place = root / ".pvqae" / "runs" / dataset
    spaces = [workspace.Workspace(root, root, params)] if params.data.name == dataset else []
    if (place / "params.yaml").exists():
        spaces.append(workspace.Workspace(root, place, config.load(place / "params.yaml")))
    for space in spaces:
        if space.layout.manifest.exists() and digest(space.layout.manifest) == manifest_sha256:
            return space
    raise DataError(
        f"{dataset}: the gate needs the manifest {manifest_sha256[:12]} that the challenger was made from, and no "
        "workspace has it; run `python -m flows train` with that version's params again (nothing is trained again)"
    )


def decide(
    registry: Registry, root: Path, dataset: str, category: str, measure: _Measure, limits: Gate,
    asked: VerdictRequest, *, loads: _Loads,
) -> Verdict:  # fmt: skip
    """Reach one verdict, with loading and measuring left to `loads` and `measure`, and act on it."""
    # 1. The aliases as the log has them.
    name, lock = lineage.model_name(dataset, category), promotions.lock_file(root, dataset)
    promotions.check_owners(registry, dataset, [category])
    with shared_files.held(lock):
        promotions.complete(registry, name)
        held = promotions.champion if asked.override else promotions.held
        champion, challenger = held(registry, name), promotions.held(registry, name, "challenger")
    if not champion and not challenger:
        raise PromotionError(f"{name}: no version is champion or challenger; {promotions.way_back(registry, name)}")
    if not challenger or challenger == champion:
        text = f"nothing to judge: version {champion} is champion, and no other version is challenger"
        return Verdict("refused", False, (text,), {}, champion or "", champion or "")

    # 2. What the challenger may not be, whatever its scores.
    tags, log = registry.version_tags(name, challenger), registry.promotions(name)
    forbidden = _forbids(tags)
    if asked.override and forbidden:
        raise PromotionError(f"{name} version {challenger} can't be promoted, not by override: {'; '.join(forbidden)}")
    if asked.override:
        notes.refuse_pinned(registry, name)
    taken_back = _rolled_back(log).get(challenger)
    flaws = forbidden + ((f"was rolled back: {taken_back}",) if taken_back else ())

    # 3. Both bundles as they were evaluated, the measuring, the rules.
    with tempfile.TemporaryDirectory() as place:
        print(f"the gate judges {name} version {challenger} against {champion or lineage.NONE}", flush=True)
        with working(f"{name}: fetching both versions"):
            own = fetch(registry, name, challenger, Path(place) / challenger)
            loads(own)  # not by override either: it could score nothing
            opponent, absent = _opponent(registry, name, champion, Path(place), asked, loads)
        found, verdict = _judged(measure, Pair(own, opponent, tags, flaws), limits, bool(asked.override))
        lines = (*absent, *verdict.lines)
        verdict = replace(verdict, lines=lines, version=challenger, champion=champion or lineage.NONE)

        # 4. The verdict with the challenger's run, before anything moves.
        _record(registry, name, verdict, found, asked, Path(place))

    # 5. The move, if nobody moved or pinned the champion meanwhile.
    if not (asked.override or verdict.promotable(limits)):
        return verdict
    if held_fast := notes.pinned(registry, name):
        return _held(registry, name, verdict, f"the champion is pinned, {held_fast}")
    consent = notes.approved(registry, name, challenger)
    if limits.approval and not consent:
        way = f"python -m flows promote approve {name} --version {challenger} --reason TEXT, then promote run again"
        return _held(registry, name, verdict, f"a second person has to approve: {way}")
    reasons = (f"override: {asked.override}",) if asked.override else (f"{asked.trigger}: {asked.reason}",)
    kind = "override" if asked.override else "gate" if champion else "initial"
    with shared_files.held(lock):
        promotions.move(
            registry,
            name,
            "champion",
            challenger,
            kind=kind,
            reasons=(*reasons, *(f"approved {note}" for note in [consent] if note), *verdict.lines),
            verdict=verdict.outcome,
            expected=verdict.champion,
        )
    return replace(verdict, promoted=True)


def _held(registry: Registry, name: str, verdict: Verdict, why: str) -> Verdict:
    """Note that a version waits for a person, and say so first."""
    notes.remember(registry, name, "held", verdict.version, why)
    return replace(verdict, held=why, lines=(f"nothing moved: {why}", *verdict.lines))


def _rolled_back(log: Sequence[Promotion]) -> dict[str, str]:
    """Return the versions that a person took back, with the reason: the gate does not promote them again."""
    return {entry.from_version: entry.reasons[0] for entry in log if entry.kind == "rollback"}


def _opponent(
    registry: Registry, name: str, champion: str | None, place: Path, asked: VerdictRequest, loads: _Loads
) -> tuple[Path | None, tuple[str, ...]]:
    """Fetch the champion's bundle; return it, and why there is none to compare with.

    A champion of a format that this code no longer reads counts as absent: nothing here can score by it. Whatever else
    is wrong (files gone or damaged, made by newer code) can be repaired, and stops all but an override.
    """
    if not champion:
        return None, ()
    try:
        folder = fetch(registry, name, champion, place / champion)
        loads(folder)
    except (RegistryError, IntegrityError) as error:
        if asked.override or (isinstance(error, FormatError) and error.older):
            return None, (f"not compared with version {champion}, which can't be loaded: {error}",)
        way = (
            "nothing can be compared with it: repair what is named (python -m flows doctor), go back to an earlier"
            f" one (python -m flows promote rollback {name} --reason TEXT), or promote without comparing (--override)"
        )
        kind = RegistryError if isinstance(error, RegistryError) else IntegrityError
        raise kind(f"{name} version {champion}, the champion: {error}; {way}") from None
    return folder, ()


def _judged(measure: _Measure, pair: Pair, limits: Gate, overridden: bool) -> tuple[Findings | None, Verdict]:
    """Measure and judge; an override goes on where the gate could not run, but keeps why."""
    try:
        found = measure(pair)
    except PvqaeError as error:
        if not overridden:
            raise
        return None, Verdict("insufficient", False, (f"undecided: the gate could not run: {error}",), {})
    return found, judge(found.measured, limits)


def _forbids(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return why a version may never be champion: an experiment's, or one that could not be rebuilt."""
    found = ["is marked never promotable"] if tags.get("never_promotable", "") == "true" else []
    if lacking := lineage.Lineage.missing(tags):
        found.append(f"lineage lacks {', '.join(lacking)}")
    return tuple(found)


def _record(
    registry: Registry, name: str, verdict: Verdict, found: Findings | None, asked: VerdictRequest, place: Path
) -> None:
    """Keep the verdict as tags of the version and its run, and as files of the run."""
    run = registry.version_tags(name, verdict.version)["mlflow_run"]
    stem = f"gate-version-{verdict.version}-against-{verdict.champion}"
    values = asdict(verdict) | asdict(asked) | {"gate_list_sha256": found.list_sha256 if found else ""}
    write_text(place / f"{stem}.json", json.dumps(values, indent=1, default=str) + "\n")
    if found:
        manifest.write_csv(found.scores, place / f"{stem}.csv")
    tags = {
        "gate_outcome": verdict.outcome,
        "gate_champion": verdict.champion,
        "gate_verdict": "\n".join(verdict.lines),
        "gate_when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "gate_figures": json.dumps(history.gate_summary(verdict.figures)),
        "gate_list_sha256": found.list_sha256 if found else lineage.NONE,
    }
    registry.tag(run, tags)  # first: it refuses where a person has deleted the run
    for file in sorted(place.glob(f"{stem}.*")):
        registry.artifact(run, file, "gate")
    registry.tag_version(name, verdict.version, tags)


def _show_in_prefect(name: str, verdict: Verdict) -> None:
    """Keep the verdict as an artifact of the flow run that asked for it, if one did."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:
        return
    body = "\n".join([f"# {verdict.sentence(name)}", *(f"* {line}" for line in verdict.lines)])
    create_markdown_artifact(body, key=lineage.artifact_key("gate", name))
