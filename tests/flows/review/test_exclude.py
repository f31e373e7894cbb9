"""A rollback that also takes out of the dataset what only the version that was taken back had learnt; with DVC."""

from pathlib import Path

import pytest

from flows.adapters import git
from flows.adapters.fakes import FakeRegistry
from flows.adapters.tracking import Promotion
from flows.adapters.versioning import Dvc
from flows.core.lineage import Owner
from flows.core.processes import Supervisor
from flows.retrain.ledger import Entry, IntakePaths, LabelLog, Ledger
from flows.review import review
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import digest
from pvqae.core.layout import ARRIVED, Layout
from pvqae.datasets import build, sources
from pvqae.samples import images
from tests.clones import clone
from tests.flows.review.test_review import photograph

MODEL, OWNER = "pvqae-nuts-nut", Owner("nuts", "nut")
BACK = Promotion("2026-01-02T03:04:05+00:00", "Ada", "champion", "2", "1", "rollback", ("oil on the lens",), "run")


class Plant:
    """A dataset of ten photographs (version 1 knows them), six that arrived and one that was added (version 2)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "params.yaml").write_text("data: {name: nuts, source: folder, min_normals: 4}\n", "utf-8")
        self.params = config.load(root / "params.yaml")
        self.raw, self.paths = Layout(root, "nuts").raw, IntakePaths(root, "nuts")
        self.ledger, self.registry = Ledger(self.paths.ledger), FakeRegistry()
        for seed in range(10):
            images.write(self.raw / "nut" / "good" / f"{seed}.png", photograph(seed))
        first = self.version()
        for seed in range(20, 26):
            self.arrive(seed, "gate" if seed == 25 else "good")
        images.write(self.raw / "nut" / "good" / "own.png", photograph(30))
        self.registry.versions[MODEL] = [{"data_hash": first}, {"data_hash": self.version()}]

    def version(self) -> str:
        with Supervisor() as supervisor:
            dvc = Dvc(self.root, supervisor)
            dvc.version_dataset("nuts")
            return dvc.data_hash("nuts")

    def arrive(self, seed: int, part: str) -> None:
        file = self.raw / ARRIVED / "nut" / part / f"a{seed}.png"
        images.write(file, photograph(seed))
        self.ledger.append([Entry(f"nut/{file.name}", "e", 1, "versioned", "", "nut", digest(file), file.name, part)])

    def exclude(self) -> tuple[str, ...]:
        return review.exclude(self.root, self.registry, OWNER, BACK, lambda _: None)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.raw.rglob("*.png"))


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(clone(tmp_path).root)


def test_what_only_the_version_taken_back_had_learnt_goes_to_quarantine(plant: Plant) -> None:
    found = sources.scan("folder", plant.raw, ["nut"], plant.params.data)
    split = {item.path.name: build.splits_of(found, plant.params)[item.sample_id] for item in found}
    learnt = [name for name in split if name.startswith("a") and split[name] in ("train", "calibrate")]
    assert learnt
    before = plant.names()
    first, *others = plant.exclude()
    assert first.startswith(f"{len(learnt)} images that only version 2 had learnt were taken out of the dataset: DVC")
    assert plant.names() == sorted(set(before) - set(learnt))
    assert "1 that came with them stay: nothing learns from the gate split" in others
    assert any(line.startswith("1 came with the dataset and stay (nut/good/own.png)") for line in others)
    assert sorted(file.name for file in (plant.paths.home / "quarantine" / "nut").iterdir()) == sorted(learnt)
    message = git.git(plant.root, "log", "-1", "--format=%B", "pvqae/data")
    assert f"{len(learnt)} images taken out" in message
    (standing,) = {(s.label.label, s.label.who) for s in LabelLog(plant.paths.labels).standing().values()}
    assert standing == ("neither", "Ada")
    assert plant.exclude()[0].startswith("0 images")  # safe to repeat


def test_a_label_that_waits_is_not_applied_with_it(plant: Plant) -> None:
    """A person may still undo it."""
    waits = Entry("nut/held.png", "e", 1, "review", "high", "nut", "0" * 64, "held.png", "good")
    plant.ledger.append([waits])
    log = LabelLog(plant.paths.labels)
    log.append(review.Label("0" * 64, "neither", "Bob", BACK.when, "nut", "held"))
    plant.exclude()
    assert [label.who for label in log.pending()] == ["Bob"]


@pytest.mark.parametrize(
    ("versions", "why"),
    [
        ([{"data_hash": "f" * 32 + ".dir"}, None], "DVC's cache lacks f"),
        ([{}, None], "DVC's cache lacks the data, the data of version 1"),
    ],
)
def test_nothing_is_taken_out_where_nothing_says_what_was_learnt(
    plant: Plant, versions: list[dict[str, str] | None], why: str
) -> None:
    known = plant.registry.versions[MODEL]
    plant.registry.versions[MODEL] = [said if said is not None else known[1] for said in versions]
    before = plant.names()
    with pytest.raises(DataError, match=why):
        plant.exclude()
    assert plant.names() == before


def test_nothing_is_taken_out_of_a_class_that_had_another_name(plant: Plant) -> None:
    (plant.raw / "nut").rename(plant.raw / "bolt")
    (plant.raw / ARRIVED / "nut").rename(plant.raw / ARRIVED / "bolt")
    plant.registry.versions["pvqae-nuts-bolt"] = plant.registry.versions[MODEL]
    with pytest.raises(DataError, match="nothing was taken out"):
        review.exclude(plant.root, plant.registry, Owner("nuts", "bolt"), BACK, lambda _: None)
