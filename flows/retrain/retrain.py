"""The retrain flow: what arrived comes into the dataset, a decision with reasons, training, the gate."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow, get_run_logger

from flows.adapters.registry import open_registry
from flows.adapters.tracking import Registry
from flows.core import environment, lineage, shared_files
from flows.retrain import retrain_policy, watch
from flows.retrain.admission import with_dataset
from flows.retrain.ledger import Taken
from flows.retrain.retrain_policy import Decision, Facts, Trigger
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core.errors import PvqaeError
from pvqae.core.files import write_text

if TYPE_CHECKING:  # training and the gate are only imported for a decision that needs them
    from flows.gate.rules import Verdict
    from flows.train.summary import Summary
    from flows.versions.registration import Registered

_LONGEST = 4000  # characters of a tag; the whole is in decision.json
_WORDS = {"train": "TRAIN", "judge": "NO TRAINING, BUT THE GATE", "wait": "NO TRAINING"}


@dataclass(frozen=True)
class Outcome:
    """What one run did; `trained` is None when the decision was not to train."""

    dataset: str
    taken: Taken
    decision: Decision
    facts: Facts
    trained: "Summary | None" = None
    verdicts: "tuple[tuple[str, Verdict], ...]" = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """What happened, for people, in the order of the story."""
        others = [line for line in self.decision.reasons if line != self.decision.reason]
        judged = [line for name, verdict in self.verdicts for line in (verdict.sentence(name), *verdict.untold)]
        return (*self.taken.lines, f"{_WORDS[self.decision.act]}: {self.decision.reason}", *others, *judged)


@flow(name="retrain", persist_result=False)
def retrain(
    root: str = "",
    params_file: str = "",
    overrides: tuple[str, ...] = (),
    trigger: Trigger = "manual",
    force: str = "",
    drift: str = "",
    dry_run: bool = False,
    dataset: str = "",
) -> Outcome:
    """Take in what arrived, decide, and if the decision is to train: train and ask the gate about each new version.

    `root`: the project, by default the worker's. `force`: the reason of an explicit request; `drift`: what drifted;
    `dataset`: one that was trained before, with the params of that training. Raises an error of `pvqae.core.errors`
    for what the user can repair; after a crash run it again.
    """
    log = get_run_logger()
    project = environment.project_of(root)

    with ExitStack() as stack:
        attempt = stack.enter_context(workspace.failures_told(project, "retrain", dataset))

        # 1. What is asked for; one retraining per dataset at a time.
        params_file = params_file or watch.params_of(project, dataset)
        choice = workspace.choose(project, params_file, overrides)
        attempt.dataset = name = choice.params.data.name
        watch.refuse_made(choice.params)
        tracking, _ = open_registry(project, choice.params.flow.tracking_uri)
        mine = project / ".pvqae" / "locks" / f"{name}.retrain.lock"
        busy = f"another retraining of {name} runs: waiting for its end"
        stack.enter_context(shared_files.held(mine, waiting=lambda: log.warning(busy)))

        # 2. What arrived, into the dataset; then the decision. `train` and the gate take the dataset's lock themselves.
        asked = Facts(trigger, force, drift, ())
        taken, facts = with_dataset(project, choice.params, tracking, asked, dry_run, log.info)
        decision = retrain_policy.decide(facts, choice.params.retrain)
        outcome = Outcome(name, taken, decision, facts)
        for line in outcome.lines:
            log.info("%s", line)
        if dry_run:
            return outcome
        stack.callback(_show, tracking, project, name)  # when the run has ended
        run = stack.enter_context(_recorded(tracking, Workspace(project, project, choice.params), outcome))

        # 3. Training and the gate.
        if decision.act == "wait":
            return outcome
        untrained: tuple[str, ...] = ()
        if decision.act == "train":
            from flows.train.summary import ClassesFailed
            from flows.train.train import train

            try:
                trained = train(str(project), params_file, overrides, decision.trigger, decision.reason, warm=True)
            except ClassesFailed as error:
                trained, untrained = error.summary, error.failed
            outcome = replace(outcome, trained=trained)
        verdicts, failed = _judge(project, outcome)
        outcome = replace(outcome, verdicts=verdicts, trained=outcome.trained and _after(outcome.trained, verdicts))
        tracking.tag(run, {f"gate_{model}": verdict.sentence(model) for model, verdict in verdicts})
        if failed or untrained:
            raise PvqaeError(
                "\n".join([*untrained, *failed]) + "\nThe gate judged the other classes. Repair this and run again."
            )
        return outcome


def _show(registry: Registry, project: Path, dataset: str) -> None:
    """Write the page of the dataset's history."""
    from flows.versions import history

    history.refresh(registry, project, dataset)


def _judge(project: Path, outcome: Outcome) -> "tuple[tuple[tuple[str, Verdict], ...], tuple[str, ...]]":
    """Ask the gate about every version that waits for it; return verdicts by model, and why some have none."""
    from flows.gate import promote

    if outcome.trained:
        waiting = [item.category for item in outcome.trained.versions if item.version and item.alias == "challenger"]
    else:
        waiting = [item.category for item in outcome.facts.classes if not item.judged]
    asked, name = outcome.decision, outcome.dataset
    verdicts, failed = [], []
    for category in waiting:
        try:
            found = promote.run(project, name, category, trigger=asked.trigger, reason=asked.reason, page=False)
            verdicts.append((lineage.model_name(name, category), found))
        except PvqaeError as error:
            failed.append(str(error))
    promote.show(project, name)  # once: a page of a thousand classes is not written again for each
    return tuple(verdicts), tuple(failed)


def _after(trained: "Summary", verdicts: "tuple[tuple[str, Verdict], ...]") -> "Summary":
    """Return the summary with the aliases that the gate gave and why: it must not contradict the verdicts."""
    judged = {(name, verdict.version): verdict for name, verdict in verdicts}

    def after(item: "Registered") -> "Registered":
        verdict = judged.get((lineage.model_name(trained.dataset, item.category), item.version))
        if verdict is None:
            return item
        alias = "champion" if verdict.promoted else item.alias
        return replace(item, alias=alias, reasons=(f"the gate, against {verdict.champion}: {verdict.outcome}",))

    return replace(trained, versions=tuple(map(after, trained.versions)))


@contextmanager
def _recorded(registry: Registry, space: Workspace, outcome: Outcome) -> Iterator[str]:
    """Keep the decision as a run of MLflow and an artifact of Prefect before anything is done about it; yield the run.

    The caller holds the lock of the dataset's retrainings.
    """
    from prefect.artifacts import create_markdown_artifact

    from flows.train.recording import flow_run

    decision, name = outcome.decision, outcome.dataset
    tags = {
        "decision": decision.act,
        "decision_reason": decision.reason[:_LONGEST],
        "decision_reasons": "\n".join(decision.reasons)[:_LONGEST],
        "trigger": decision.trigger,
        "arrived": "\n".join(outcome.taken.lines)[:_LONGEST],
    }
    with flow_run(registry, space, "retrain", tags) as run:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "decision.json"
            values = {"decision": asdict(decision), "facts": asdict(outcome.facts), "arrived": outcome.taken.lines}
            write_text(file, json.dumps(values, indent=1) + "\n")
            registry.artifact(run, file)
        body = "\n".join([f"# retrain {name}", *(f"* {line}" for line in outcome.lines)])
        create_markdown_artifact(body, key=lineage.artifact_key("retrain", name), description=decision.reason)
        yield run


@flow(name="retrain-all", persist_result=False)
def retrain_all(root: str = "", trigger: Trigger = "schedule") -> None:
    """Retrain each dataset of the project at `root` (default: the worker's) as `retrain` decides.

    One dataset's failure does not stop the others; raises `PvqaeError` that names each at the end.
    """
    log, project = get_run_logger(), environment.project_of(root)
    failed = []
    datasets = watch.datasets(project)
    if not datasets:
        log.info("no dataset with a landing.url was trained here: nothing to do")
    for name in datasets:
        try:
            retrain(str(project), trigger=trigger, dataset=name)
        except Exception as error:  # also of Prefect, of MLflow's clients, of the disk
            failed.append(f"{name}: {error}")
    if failed:
        raise PvqaeError("\n".join(failed))
