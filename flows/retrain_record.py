"""What a retraining did, and its decision where people and programs look for it."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from flows import dead_runs, lineage, promote
from flows.adapters.tracking import Registry
from flows.arrivals import Taken
from flows.gate_rules import Verdict
from flows.recording import ending, experiment
from flows.retrain_policy import Decision, Facts
from flows.summary import Summary
from flows.workspace import Workspace
from pvqae.files import write_text

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
        tags |= dead_runs.end(self._registry, self._space.root, experiment(self._space), "retrain")
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
