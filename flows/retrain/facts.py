"""The facts of the retraining decision, from the registry, the versions of the data and the ledger of arrivals.

What a retraining did, and its decision where people and programs look for it.
"""

import datetime
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from flows.adapters.tracking import Registry
from flows.adapters.versioning import Versioning
from flows.core import lineage
from flows.gate import promote
from flows.gate.rules import Verdict
from flows.retrain.arrivals import Taken
from flows.retrain.arrivals_ledger import Ledger, Places
from flows.retrain.retrain_policy import ClassFacts, Decision, Facts
from flows.train.recording import ending, experiment
from flows.train.summary import Summary
from flows.versions import promotions
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core.config import Params
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.datasets.layouts import Found

HELD_OUT = ("test", "gate")  # splits set by the source or by a person: nothing there is trained on


def facts_of(
    asked: Facts,
    registry: Registry,
    dvc: Versioning,
    params: Params,
    found: Sequence[Found],
    ledger: Ledger,
    places: Places,
    taken: Taken,
) -> Facts:
    """The facts of every class, from the registry, the data versions and the ledger."""
    name, raw, now = params.data.name, Layout(places.root, params.data.name).raw, datetime.datetime.now(datetime.UTC)
    held = Counter(e.category for e in ledger.entries("review") if (file := places.file(e)) and file.exists())

    def facts(category: str) -> ClassFacts:
        model = lineage.model_name(name, category)
        champion = promotions.champion(registry, model) or ""
        normals = [f for f in found if f.category == category and f.label == "normal" and f.official not in HELD_OUT]
        seen = dvc.listing(registry.version_tags(model, champion)["data_hash"]) if champion else None
        fresh = taken.waiting.get(f"{category}, a dry run", 0)
        trained, judged = ("", False) if fresh else of_this_data(registry, model, dvc.data_hash(name))
        return ClassFacts(
            category=category,
            champion=champion,
            age_days=age_days(registry, model, champion, now) if champion else None,
            new_normals=None if seen is None else fresh + sum(_below(f, raw) not in seen for f in normals),
            in_review=held[category],
            trained=trained,
            judged=judged,
        )

    return replace(asked, classes=tuple(facts(category) for category in sorted({f.category for f in found})))


def of_this_data(registry: Registry, model: str, data_hash: str) -> tuple[str, bool]:
    """The newest version made of a version of the data, and whether the gate is done with it; "" for none.

    A version without any alias and verdict does not count: a training that was killed then has still to name it.
    """
    version = registry.find(model, {"data_hash": data_hash}) or ""
    if not version:
        return "", False
    if promotions.champion(registry, model) == version or registry.version_tags(model, version).get("gate_outcome"):
        return version, True
    return (version, False) if promotions.held(registry, model, "challenger") == version else ("", False)


def _below(found: Found, raw: Path) -> str:
    return found.path.relative_to(raw).as_posix()


def age_days(registry: Registry, model: str, version: str, now: datetime.datetime) -> float | None:
    """Days since `version` first got an alias, which is when it was registered; None when the log does not say."""
    moves = sorted(entry.when for entry in registry.promotions(model) if entry.to_version == version)
    if not moves:
        return None
    return (now - datetime.datetime.fromisoformat(moves[0])).total_seconds() / 86400


LONGEST = 4000  # characters of a tag; the whole is in decision.json
WORDS = {"train": "TRAIN", "judge": "NO TRAINING, BUT THE GATE", "wait": "NO TRAINING"}


@dataclass(frozen=True)
class Outcome:
    """What one run did; `trained` None when the decision was not to train."""

    dataset: str
    taken: Taken
    decision: Decision
    facts: Facts
    trained: Summary | None = None
    verdicts: tuple[tuple[str, Verdict], ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """For people, in the order of the story."""
        others = [line for line in self.decision.reasons if line != self.decision.reason]
        judged = [promote.summary(name, verdict) for name, verdict in self.verdicts]
        return (*self.taken.lines, f"{WORDS[self.decision.act]}: {self.decision.reason}", *others, *judged)


class recorded:  # noqa: N801 - reads as a word in `with`
    """The decision as a run of MLflow and an artifact of Prefect, kept before anything is done about it.

    The caller holds the lock of the dataset's retrainings.
    """

    def __init__(self, registry: Registry, space: Workspace, outcome: Outcome) -> None:
        self._registry, self._space, self._outcome = registry, space, outcome

    def __enter__(self) -> str:
        found, decision = self._outcome, self._outcome.decision
        tags = {
            "decision": decision.act,
            "decision_reason": decision.reason[:LONGEST],
            "decision_reasons": "\n".join(decision.reasons)[:LONGEST],
            "trigger": decision.trigger,
            "arrived": "\n".join(found.taken.lines)[:LONGEST],
        }
        name = found.dataset
        tags |= workspace.end_dead_runs(self._registry, self._space.root, experiment(self._space), "retrain")
        self._run = self._registry.start(experiment(self._space), f"retrain {name}", tags=tags)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "decision.json"
            values = {"decision": asdict(decision), "facts": asdict(found.facts), "arrived": found.taken.lines}
            write_text(file, json.dumps(values, indent=1) + "\n")
            self._registry.artifact(self._run, file)
        body = "\n".join([f"# retrain {name}", *(f"* {line}" for line in found.lines)])
        create_markdown_artifact(body, key=lineage.artifact_key("retrain", name), description=decision.reason)
        return self._run

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._registry.finish(self._run, ending(error))
