"""What became of a dataset's detectors over time, from what is kept anyway; `reports/<dataset>/history.html` shows it.

Versions, aliases, verdicts, pins, waits and rollbacks are in the registry, trainings in MLflow's runs, drift beside the
scores, labels in the review's log.
"""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flows.adapters.tracking import FLOW, Listed, Promotion, Registry, RegistryError
from flows.core import lineage, shared_files
from flows.core.lineage import Owner
from flows.versions import history_page, notes, promotions
from flows.versions.history_page import ClassHistory, Event, History, Span, VersionHistory
from flows.workspace import workspace
from pvqae.core.errors import PvqaeError
from pvqae.core.files import whole_file

NAME = "history.html"
_FIGURES = "gate_figures"  # tag of a judged version: `gate_summary` as JSON
_DRIFT: Mapping[str, str] = {"drift": "drift", "none": "no drift", "insufficient": "too few to tell"}


@dataclass(frozen=True)
class _Said:
    """What this page reads of a line of the review's log, see `flows.retrain.labels.Label`."""

    label: str
    who: str
    when: str
    category: str = ""


@dataclass(frozen=True)
class _Drift:
    """What this page reads of a line of drift.jsonl; `n` and `above` are unknown in lines of 0.2."""

    when: str
    version: str
    verdict: Literal["drift", "none", "insufficient"]
    sentence: str = ""
    n: int | None = None
    above: int | None = None


def refresh(registry: Registry, root: Path, dataset: str) -> Path | None:
    """Write the page and return it; None where a flow works on the dataset, which writes it at its end."""
    with shared_files.tried(workspace.lock_file(root, dataset)) as free:
        return write(registry, root, dataset) if free else None


def write(registry: Registry, root: Path, dataset: str) -> Path | None:
    """Write the dataset's page and return it; None, and a line that says why, where that is not possible.

    The caller holds the dataset's lock.
    """
    file = root / "reports" / dataset / NAME
    try:
        text = history_page.render(collect(registry, root, dataset))
        with whole_file(file, shared=True) as part:
            part.write_text(text, "utf-8", newline="\n")
    except (PvqaeError, OSError, ValueError, KeyError) as error:  # a tag or a line that a person has changed
        print(f"{file}: the page was not written: {error}", flush=True)
        return None
    return file


def collect(registry: Registry, root: Path, dataset: str) -> History:
    """Return all that is known of a dataset's past; times are UTC. A line without a readable time is left out."""
    flown = [_flown(one.when, one.status, one.tags) for one in registry.flows_of(f"{lineage.OURS}{dataset}")]
    owners = {name: owner for name, owner in registry.owners(lineage.model_name(dataset, "")).items() if owner}
    mine = {name: owner.category for name, owner in owners.items() if owner.dataset == dataset}
    said = list(shared_files.records(labels_file(root, dataset), _Said))
    found = tuple(_class(registry, root, name, Owner(dataset, category), said) for name, category in mine.items())
    return History(dataset, found, tuple(event for event in flown if event))


def labels_file(root: Path, dataset: str) -> Path:
    """Return the file of what people said in review."""
    return root / ".pvqae" / "review" / dataset / "labels.jsonl"


def _class(registry: Registry, root: Path, name: str, owner: Owner, said: Sequence[_Said]) -> ClassHistory:
    log, listed = registry.promotions(name), registry.versions_of(name)
    names = notes.names_of(registry, name, owner.category)
    champion, challenger = (promotions.champion(registry, name), promotions.held(registry, name, "challenger"))
    remembered = notes.events(registry, name)
    events = [
        *_moves(log),
        *(Event(at, values["kind"], values["version"], values["text"], values["who"])
          for when, values in remembered if (at := _time(when))),
        *_reviews([one for one in said if one.category in names]),
        *_drifts(root, [lineage.model_name(owner.dataset, one) for one in names]),
    ]  # fmt: skip
    return ClassHistory(
        model=name,
        category=owner.category,
        champion=champion or "",
        challenger=challenger or "",
        pinned=notes.pinned(registry, name),
        retired=notes.retired(registry, name),
        versions=tuple(_versions(registry, name, listed, log)),
        reigns=tuple(_reigns(log)),
        pins=tuple(_pins(remembered)),
        events=tuple(sorted(events, key=lambda event: event.when)),
    )


def _versions(
    registry: Registry, name: str, listed: Sequence[Listed], log: Sequence[Promotion]
) -> Iterator[VersionHistory]:
    back = {entry.from_version for entry in log if entry.kind == "rollback"}
    reigned = {entry.to_version for entry in log if entry.alias == "champion"}
    first = {entry.to_version: entry.when for entry in reversed(log)}
    promoted = {entry.to_version: entry.when for entry in log if entry.kind in ("gate", "override", "initial")}
    for one in listed:
        made = _time(first.get(one.number, one.when)) or _time(one.when)
        if made is None:
            continue
        judged = _time(one.tags.get("gate_when", "") or promoted.get(one.number, "")) or made
        outcome = one.tags.get("gate_outcome", "")
        figures = json.loads(one.tags.get("figures", "{}"))
        yield VersionHistory(
            number=one.number,
            when=made,
            state="taken back" if one.number in back else "champion" if one.number in reigned else outcome or "waits",
            trigger=one.tags.get("trigger", ""),
            reason=one.tags.get("reason", ""),
            image_auroc=figures.get("image_auroc"),
            alarm_rate=figures.get("false_alarm_rate"),
            outcome=outcome,
            judged=judged if outcome else None,
            against=one.tags.get("gate_champion", ""),
            gate=_gate(registry, name, one) if outcome else {},
            rules=tuple(one.tags.get("gate_verdict", "").split("\n")) if outcome else (),
        )


def _gate(registry: Registry, name: str, one: Listed) -> dict[str, Any]:
    """Return the figures of a verdict; those of 0.2, which are in a file of the run only, are kept as a tag, too."""
    if _FIGURES in one.tags:
        return dict(json.loads(one.tags[_FIGURES]))
    stem = f"gate-version-{one.number}-against-{one.tags.get('gate_champion', lineage.NONE)}"
    with tempfile.TemporaryDirectory() as place, suppress(RegistryError, OSError, ValueError, KeyError):
        folder = registry.fetch(one.tags["mlflow_run"], "gate", Path(place))
        if folder is None:
            return {}
        found = gate_summary(json.loads((folder / f"{stem}.json").read_text("utf-8"))["figures"])
        registry.tag_version(name, one.number, {_FIGURES: json.dumps(found)})
        return found
    return {}


def gate_summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a verdict's figures, as its JSON file has them; null where not measured."""
    auroc, alarms = figures.get("auroc") or {}, figures.get("alarms") or {}
    return {
        "image_auroc": figures.get("own_auroc"),
        "difference": auroc["challenger"] - auroc["champion"] if auroc else None,
        "low": auroc.get("low"),
        "high": auroc.get("high"),
        "aupro": figures.get("own_aupro"),
        "alarm_rate": alarms.get("rate"),
        "alarm_low": alarms.get("low"),
        "target": figures.get("target"),
        "normals": figures.get("normals"),
        "defects": figures.get("defects"),
    }


def _moves(log: Sequence[Promotion]) -> Iterator[Event]:
    """Yield the moves of the champion; a challenger's are its version's own rows."""
    for entry in log:
        if entry.alias == "champion" and (at := _time(entry.when)):
            text = f"from version {entry.from_version}: {entry.reasons[0] if entry.reasons else ''}"
            yield Event(at, entry.kind, entry.to_version, text, entry.who)


def _reigns(log: Sequence[Promotion]) -> Iterator[Span]:
    """Yield which version was champion from when to when; None: until now."""
    moves = [(at, one.to_version) for one in log if one.alias == "champion" and (at := _time(one.when))]
    ends: list[datetime | None] = [*(at for at, _ in moves[1:]), None]
    yield from (Span(at, end, version) for (at, version), end in zip(moves, ends, strict=True))


def _pins(remembered: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[Span]:
    begun: tuple[datetime, str] | None = None
    for when, values in remembered:
        at = _time(when)
        if at and values["kind"] == "pinned":
            begun = begun or (at, values["version"])
        elif at and values["kind"] == "unpinned" and begun:
            yield Span(begun[0], at, begun[1])
            begun = None
    if begun:
        yield Span(begun[0], None, begun[1])


def _reviews(said: Sequence[_Said]) -> Iterator[Event]:
    """Yield one event per day: how many images were called what, by whom."""
    days: dict[str, list[_Said]] = defaultdict(list)
    for one in said:
        if one.label in ("good", "defect", "neither"):
            days[one.when[:10]].append(one)
    for own in days.values():
        if at := _time(own[-1].when):
            words = ", ".join(f"{n} {label}" for label, n in sorted(Counter(one.label for one in own).items()))
            yield Event(at, "review", "", f"labelled: {words}", ", ".join(sorted({one.who for one in own})), len(own))


def _drifts(root: Path, models: Collection[str]) -> Iterator[Event]:
    for file in sorted(file for model in models for file in (root / "scores" / model).glob("*/drift.jsonl")):
        for one in shared_files.records(file, _Drift):
            if at := _time(one.when):
                share = one.above / one.n if one.n and one.above is not None else None
                text = f"{file.parent.name}: {one.sentence}"
                yield Event(at, _DRIFT[one.verdict], one.version, text, "", one.n or 0, share)


def _flown(when: str, status: str, tags: Mapping[str, str]) -> Event | None:
    """Return a training or retraining; None where nothing had changed."""
    at, flow = _time(when), tags[FLOW]
    if at is None or (status == "FINISHED" and tags.get("nothing_changed") == "true"):
        return None
    ended = {"FINISHED": "", "FAILED": "failed", "KILLED": "was stopped"}.get(status, "had not ended")
    act = {"wait": "decided not to train", "judge": "asked the gate only"}.get(tags.get("decision", ""), "")
    why = tags.get("decision_reason", "") or tags.get("reason", "")
    arrived = tags.get("arrived", "").split("\n")[0]
    text = "; ".join(filter(None, (ended, act, why, arrived)))
    kind = "failed" if status in ("FAILED", "KILLED") else "waited" if tags.get("decision") == "wait" else flow
    return Event(at, kind, "", f"{flow}: {text}" if text else flow, tags.get("trigger", ""))


def _time(text: str) -> datetime | None:
    """Return a time as UTC, None where the text is none; without a zone it is taken as UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
