"""The retrain flow: what arrived comes into the dataset, a decision with reasons, training, the gate."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from prefect import flow, get_run_logger

from flows import choices, environment, lineage, locks, promote, retrain_policy, steps
from flows.gate_rules import Verdict
from flows.retrain_intake import params_of, refuse_made, with_dataset
from flows.retrain_policy import Decision, Facts, Trigger
from flows.retrain_record import Outcome, recorded
from flows.summary import Summary
from flows.train import train
from flows.workspace import Workspace
from pvqae.errors import PvqaeError


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

    `root`: the project, by default the worker's.
    `force`: the reason of an explicit request; `drift`: what drifted; `dataset`: one that was trained before, with the
    params of then. Raises an error of `pvqae.errors` for what the user can repair; after a crash run it again.
    """
    log = get_run_logger()
    project = environment.project_of(root)

    # 1. What is asked for; one retraining per dataset at a time.
    params_file = params_file or params_of(project, dataset)
    choice = choices.choose(project, params_file, overrides)
    name = choice.params.data.name
    refuse_made(choice.params)
    tracking, _ = steps.tracker(project, choice.params.flow.tracking_uri)
    with ExitStack() as stack:
        mine = project / ".pvqae" / "locks" / f"{name}.retrain.lock"
        busy = f"another retraining of {name} runs: waiting for its end"
        stack.enter_context(locks.held(mine, waiting=lambda: log.warning(busy)))

        # 2. What arrived, into the dataset; then the decision. `train` and the gate take the dataset's lock themselves.
        asked = Facts(trigger, force, drift, ())
        taken, facts = with_dataset(project, choice.params, tracking, asked, dry_run, log.info)
        decision = retrain_policy.decide(facts, choice.params.retrain)
        outcome = Outcome(name, taken, decision, facts)
        for line in outcome.lines:
            log.info("%s", line)
        if dry_run:
            return outcome
        space = Workspace(project, project, choice.params)
        run = stack.enter_context(recorded(tracking, space, outcome))

        # 3. Training and the gate.
        if decision.act == "wait":
            return outcome
        if decision.act == "train":
            outcome = replace(outcome, trained=train_again(str(project), params_file, overrides, decision))
        verdicts, failed = judge(project, outcome)
        outcome = replace(outcome, verdicts=verdicts)
        promote.show(project, name)  # once: a page of a thousand classes is not written anew for each
        tracking.tag(
            run, {f"gate_{category}": promote.summary(category, found) for category, found in outcome.verdicts}
        )
        if failed:
            raise PvqaeError("\n".join(failed) + "\nThe gate judged the other classes. Repair this and run again.")
        return outcome


def train_again(root: str, params_file: str, overrides: tuple[str, ...], decision: Decision) -> Summary:
    """Train on the dataset as it is now, from the champions' weights."""
    summary: Summary = train(root, params_file, overrides, decision.trigger, decision.reason, warm=True)
    return summary


def judge(project: Path, outcome: Outcome) -> tuple[tuple[tuple[str, Verdict], ...], tuple[str, ...]]:
    """The gate's verdict on every version that waits for one, by the name of its model; and why some have none."""
    if outcome.trained:
        waiting = [item.category for item in outcome.trained.versions if item.version and item.alias == "challenger"]
    else:
        waiting = [item.category for item in outcome.facts.classes if not item.judged]
    asked, name = outcome.decision, outcome.dataset
    verdicts, failed = [], []
    for category in waiting:
        try:
            found = promote.verdict_on(project, name, category, trigger=asked.trigger, reason=asked.reason)
            verdicts.append((lineage.model_name(name, category), found))
        except PvqaeError as error:
            failed.append(str(error))
    return tuple(verdicts), tuple(failed)
