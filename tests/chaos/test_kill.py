"""SIGKILL at any moment of train, retrain, promote, rollback and score, again and again on one project.

After each death nothing of the flow lives on and no file is half; after the command was run again to its end there is
one version per bundle, one entry per decision, each sample once. `tests/chaos/invariants.py` says what is looked at.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.adapters.tracking import own_database
from flows.versions import promotions
from tests.chaos import invariants, projects
from tests.chaos.figures import Figure, record, size
from tests.chaos.projects import (
    ALIAS_MODULES,
    CATEGORY,
    DATASET,
    FLOW_MODULES,
    MODEL,
    Aim,
    Moments,
    Oven,
    Project,
    Server,
    grows,
    kill,
    land,
    served,
    train,
)

# The warnings are MLflow's own, of its import.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

SEED = 11
IMAGES = 16  # that are scored
LIMIT = 1500  # seconds of a trial: on a slow machine fewer die, and the figures say how many
VERSIONS, LOG = "model_versions", "registered_model_tags"  # tables that grow when a version or a log entry is made
LINEAGE = ("git_sha", "data_sha", "manifest_sha256", "bundle_sha256")


@dataclass
class Trial:
    """Deaths of one command, and what was broken after each."""

    name: str
    what: str
    project: Project
    moments: Moments
    cold: int
    began: float = field(default_factory=time.monotonic)
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def kill(self, *words: str) -> bool:
        """One death; whether the command had not ended before."""
        when, how, delay = self.moments.next()
        # The first `cold` as people start them: with a temporary server of Prefect, which must not live on either.
        if cold := self.tried < self.cold:
            when = ("its server starts", lambda: served(self.project))
            delay = 3.0 * self.tried
        found = kill(self.project, words, when, how, delay, cold)
        if found.ended:
            return False
        self.tried += 1
        self.told.append(str(found))
        broken = [f"lives on: {line}" for line in found.orphans] + invariants.at_once(self.project)
        self.lost += [f"{found}: {text}" for text in broken]
        return True

    def settle(self, found: list[str]) -> None:
        """What was broken after a run to the end."""
        self.lost += [f"after the rerun that followed {self.told[-1:]}: {text}" for text in found]

    def close(self, note: str) -> None:
        lost = min(self.tried, len(self.lost))
        seconds = time.monotonic() - self.began
        record(Figure(self.name, self.what, self.tried, self.tried - lost, lost, seconds, note))
        assert not self.lost, f"seed {SEED}: " + "\n".join(self.lost)


def rounds(trial: Trial, deaths: int, each: int) -> Iterator[int]:
    """Numbers of rounds until enough has died, at most `each` deaths in a round; none begins after `LIMIT`."""
    number = 0
    while trial.tried < deaths and time.monotonic() - trial.began < LIMIT:
        number += 1
        yield min(each, deaths - trial.tried)
        assert number < 10 * deaths, "the command ends before it can be killed"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, float]]:
    """A project with a first champion and a challenger, and the seconds that a training takes."""
    cold = projects.made(tmp_path_factory.mktemp("kill"))
    assert "1 champion (new)" in cold.run(*train(cold, 0))
    server = Server(tmp_path_factory.mktemp("server"))
    oven = Oven(cold, tmp_path_factory.mktemp("oven"), FLOW_MODULES, server.api)
    try:
        project = Project(cold.root, oven)
        began = time.monotonic()
        assert "2 challenger (new)" in project.run(*train(project, 1))
        yield project, time.monotonic() - began
    finally:
        oven.close()
        server.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose registry has two versions of which the second is champion; nothing was trained."""
    project = projects.made(tmp_path_factory.mktemp("bare"))
    own_database(project.root)
    registry = invariants.registry(project)
    run = registry.start("pvqae-tiles", "made")
    for number in "12":
        tags = dict.fromkeys(LINEAGE, number) | {"mlflow_run": run}
        version = registry.register(MODEL, run, f"{project.place}/nowhere", tags)
        alias, kind = ("champion", "initial") if number == "1" else ("challenger", "challenger")
        promotions.move(registry, MODEL, alias, version, kind=kind, reasons=("made",))
    oven = Oven(project, tmp_path_factory.mktemp("oven"), ALIAS_MODULES)
    try:
        yield Project(project.root, oven)
    finally:
        oven.close()


def test_killed_rollbacks_are_done_once(bare: Project) -> None:
    """A rollback that names its version can be asked for again."""
    words = ("promote", "rollback", DATASET, CATEGORY, "--reason", "a trial", "--version", "2")
    aims: list[Aim] = [("its entry is in the log", lambda: grows(bare, LOG))]
    promote_second(bare)
    began = time.monotonic()
    bare.run(*words)
    moments = Moments(SEED, time.monotonic() - began, aims, share=0.6)
    trial = Trial("13_kill_rollback", "SIGKILL of promote rollback", bare, moments, cold=0)
    for deaths in rounds(trial, size(3, 20), each=2):
        promote_second(bare)
        before = len(invariants.log(bare))
        for _ in range(deaths):
            trial.kill(*words)
        bare.run(*words)
        found = invariants.of_log(bare, settled=True)
        added = [entry.kind for entry in invariants.log(bare)[before:]]
        found += [] if added == ["rollback"] else [f"{len(added)} entries of one rollback"]
        trial.settle(found + ([] if invariants.champion(bare) == "1" else ["version 1 is not champion"]))
    trial.close("one entry each, the log and the alias agree")


def promote_second(project: Project) -> None:
    registry = invariants.registry(project)
    if registry.alias(MODEL, "champion") != "2":
        promotions.move(registry, MODEL, "champion", "2", kind="override", reasons=("again",))


def test_killed_trainings_make_one_version_each(trained: tuple[Project, float]) -> None:
    project, length = trained
    bundle = project.space / "models" / DATASET / CATEGORY / "bundle"
    aims: list[Aim] = [
        ("its bundle is gone", lambda: lambda: not bundle.exists()),
        ("a model is being logged", lambda: grows(project, "logged_models")),
        ("a version is registered", lambda: grows(project, VERSIONS)),
        ("its entry is in the log", lambda: grows(project, LOG)),
    ]
    trial = Trial("11_kill_train", "SIGKILL of train", project, Moments(SEED + 1, length, aims), size(1, 3))
    seed = 100
    for deaths in rounds(trial, size(2, 40), each=4):
        seed += 1
        before = len(invariants.versions(project))
        for _ in range(deaths):
            trial.kill(*train(project, seed))
        project.run(*train(project, seed))
        made = len(invariants.versions(project)) - before
        trial.settle(invariants.after_rerun(project) + ([] if made == 1 else [f"{made} versions of seed {seed}"]))
    trial.close(f"{seed - 100} versions, one per seed; each bundle verified")


def test_killed_retrainings_take_each_sample_once(trained: tuple[Project, float]) -> None:
    project, length = trained
    words = ("retrain", "--dataset", DATASET, "--trigger", "samples")
    ledger = project.root / ".pvqae" / "arrivals" / DATASET / "ledger.jsonl"
    aims: list[Aim] = [
        ("a sample is in the ledger", lambda: larger(ledger)),
        ("the data has a version", lambda: other(project.root / "data" / "raw" / f"{DATASET}.dvc")),
        ("a model is being logged", lambda: grows(project, "logged_models")),
        ("a version is registered", lambda: grows(project, VERSIONS)),
        ("its entry is in the log", lambda: grows(project, LOG)),
        ("the gate's verdict is kept", lambda: grows(project, "model_version_tags")),
    ]
    trial = Trial("12_kill_retrain", "SIGKILL of retrain", project, Moments(SEED + 2, length * 1.7, aims), size(1, 3))
    found = projects.later(project.place, 3 * size(2, 25))
    number = 0
    for deaths in rounds(trial, size(2, 25), each=4):
        new, number = found[3 * number : 3 * number + 3], number + 1
        before = len(invariants.versions(project))
        land(project, new, f"day{number}")
        for _ in range(deaths):
            trial.kill(*words)
        project.run(*words)
        made = len(invariants.versions(project)) - before
        trial.settle(invariants.after_rerun(project) + ([] if made <= 1 else [f"{made} versions of day {number}"]))
    trial.close(f"{5 * number} objects landed, each decided once; each good one once in dataset and manifest")


def larger(file: Path) -> Callable[[], bool]:
    def bytes_of() -> int:
        return file.stat().st_size if file.exists() else 0

    before = bytes_of()
    return lambda: bytes_of() > before


def other(file: Path) -> Callable[[], bool]:
    before = file.read_bytes()
    return lambda: file.exists() and file.read_bytes() != before


def test_killed_promotions_move_the_champion_once(trained: tuple[Project, float]) -> None:
    project, _ = trained
    words = ("promote", "run", DATASET, CATEGORY, "--override", "a trial")
    aims: list[Aim] = [
        ("its entry is in the log", lambda: grows(project, LOG)),
        ("the verdict is kept", lambda: grows(project, "tags")),
    ]
    began = time.monotonic()
    away(project)
    project.run(*words)
    moments = Moments(SEED + 3, time.monotonic() - began, aims)
    trial = Trial("14_kill_promote", "SIGKILL of promote run", project, moments, cold=0)
    for deaths in rounds(trial, size(1, 10), each=2):
        away(project)
        before, wanted = len(invariants.log(project)), invariants.registry(project).alias(MODEL, "challenger")
        for _ in range(deaths):
            trial.kill(*words)
        project.run(*words, expect=(0, 1))  # 1: nothing to judge, the killed one had done it
        found = invariants.after_rerun(project)
        added = [entry.kind for entry in invariants.log(project)[before:]]
        found += [] if added == ["override"] else [f"{len(added)} entries of one promotion"]
        trial.settle(found + ([] if invariants.champion(project) == wanted else ["the challenger is not champion"]))
    trial.close("one entry each, the log and the alias agree")


def away(project: Project) -> None:
    """Another champion than the challenger."""
    registry = invariants.registry(project)
    if registry.alias(MODEL, "champion") == registry.alias(MODEL, "challenger"):
        promotions.move(registry, MODEL, "champion", "1", kind="override", reasons=("back",))


def some(project: Project, number: int) -> Path:
    """A folder of images to score."""
    folder = project.place / "scored"
    folder.mkdir(exist_ok=True)
    for file in sorted((project.place / "photographs" / CATEGORY / "good").glob("*.png"))[:number]:
        shutil.copyfile(file, folder / file.name)
    return folder


def test_killed_scorings_have_each_image_once(trained: tuple[Project, float]) -> None:
    project, _ = trained
    source = some(project, IMAGES)
    words = ("score", f"{MODEL}@1", str(source), "--out")
    reference = project.root / "scores" / "reference"
    began = time.monotonic()
    project.run(*words, str(reference))
    length, wanted = time.monotonic() - began, (reference / "scores.jsonl").read_bytes()
    assert len(wanted.splitlines()) == IMAGES
    out = [project.root / "scores" / "none"]
    aims: list[Aim] = [
        ("the first image is scored", lambda: lambda: bool(list(out[0].glob(".journal-*.sqlite")))),
        ("the results are written", lambda: lambda: (out[0] / "scores.jsonl.part").exists()),
    ]
    trial = Trial("15_kill_score", "SIGKILL of score", project, Moments(SEED + 4, length, aims), size(1, 3))
    for deaths in rounds(trial, size(2, 20), each=4):
        out[0] = project.root / "scores" / f"to{trial.tried}"
        for _ in range(deaths):
            trial.kill(*words, str(out[0]))
        project.run(*words, str(out[0]))
        same = (out[0] / "scores.jsonl").read_bytes() == wanted
        trial.settle(invariants.after_rerun(project) + ([] if same else ["other results than without a death"]))
    trial.close("results are byte for byte those of a run without a death")
