"""The retrain flow: what arrived comes into the dataset, a decision with reasons, training, the gate.

The scheduled flow: a retraining of every dataset to which new images can come.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from prefect import flow, get_run_logger

from flows.adapters.registry import open_registry
from flows.core import environment, lineage, locks
from flows.gate import promote
from flows.gate.rules import Verdict
from flows.retrain import retrain_policy, watch
from flows.retrain.facts import Outcome, recorded
from flows.retrain.intake_steps import params_of, refuse_made, with_dataset
from flows.retrain.retrain_policy import Decision, Facts, Trigger
from flows.train.summary import Summary
from flows.train.train import train
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core.errors import PvqaeError


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
    params of then. Raises an error of `pvqae.core.errors` for what the user can repair; after a crash run it again.
    """
    log = get_run_logger()
    project = environment.project_of(root)

    # 1. What is asked for; one retraining per dataset at a time.
    params_file = params_file or params_of(project, dataset)
    choice = workspace.choose(project, params_file, overrides)
    name = choice.params.data.name
    refuse_made(choice.params)
    tracking, _ = open_registry(project, choice.params.flow.tracking_uri)
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
