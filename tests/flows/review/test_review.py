"""Queues, the log of labels, and Apply with twins in memory: in which order, what counts, a death at every line."""

import csv
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.adapters.fakes import FakeVersioning
from flows.retrain import admission, index, ledger
from flows.retrain import arrivals as arrivals_
from flows.retrain.gate_normals import GateNormal
from flows.retrain.ledger import Entry, IntakePaths, Label, LabelLog, Ledger, Word
from flows.review import apply, items
from flows.review.apply import Applied, Applier
from flows.review.session import ReviewSession
from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError
from pvqae.core.files import digest
from pvqae.core.layout import ARRIVED, Layout
from pvqae.datasets import arrivals, build, facts, sources
from pvqae.samples import images
from pvqae.samples import manifest as manifests
from tests.flows.deaths import traced

PARAMS = config.parse({"data": {"name": "nuts", "source": "folder", "min_normals": 4}})


def photograph(seed: int) -> images.Floats:
    """A part: smooth blotches, other ones for each seed."""
    coarse = Image.fromarray(np.random.default_rng(seed).random((6, 6), dtype=np.float32))
    smooth = np.asarray(coarse.resize((48, 48), Image.Resampling.BICUBIC))
    return np.repeat(np.clip(0.4 + 0.3 * smooth, 0, 1)[..., None], 3, axis=2).astype(np.float32)


def said(sha256: str, label: Word, who: str = "Ada", **more: object) -> Label:
    return Label(sha256, label, who, "2026-01-02T03:04:05+00:00", **more)  # type: ignore[arg-type]


@dataclass
class World:
    """The dataset `nuts` of one class, two held images, and a scored folder."""

    root: Path
    dvc: FakeVersioning = field(default_factory=FakeVersioning)
    commits: list[str] = field(default_factory=list)

    @property
    def raw(self) -> Path:
        return Layout(self.root, "nuts").raw

    @property
    def places(self) -> IntakePaths:
        return IntakePaths(self.root, "nuts")

    @property
    def log(self) -> LabelLog:
        return LabelLog(self.places.labels)

    def make(self, normals: int = 10) -> None:
        for seed in range(normals):
            images.write(self.raw / "nut" / "good" / f"{seed}.png", photograph(seed))
        for number, score in ((20, 7.0), (21, 9.0)):
            file = self.places.review / "nut" / f"h{number}__a.png"
            images.write(file, photograph(number))
            entry = Entry(f"nut/h{number}__a.png", "e", 1, "review", "high", "nut", digest(file), file.name, "good")
            Ledger(self.places.ledger).append([replace(entry, score=score)])
        self.score({30: 1.0, 31: 4.9, 32: 5.2, 33: 9.0})

    def score(self, scores: dict[int, float]) -> None:
        folder = self.root / "scores" / "pvqae-nuts-nut" / "belt"
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for seed, score in scores.items():
            file = self.root / "belt" / f"{seed}.png"
            images.write(file, photograph(seed))
            decision = "defect" if score > 5 else "normal"
            rows.append({"path": str(file), "sha256": digest(file), "score": score, "threshold": 5.0, "version": "3"})
            rows[-1]["decision"] = decision
        rows.append({"path": "cut.png", "sha256": "", "score": None, "threshold": 5.0, "decision": "", "version": "3"})
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def desk(self) -> ReviewSession:
        return ReviewSession(self.places, ("nut",), 100, lambda category: "3")

    def record(self, message: str) -> str:
        if not self.commits or self.commits[-1] != message:  # a real commit of the same tree is none
            self.commits.append(message)
        return "sha"

    def apply(self) -> Applied:
        found = {item.sha256: item for item in items.scored(self.root, "nuts", ["nut"])}
        with self.log.writing():
            log = self.log
            applier = Applier(self.places, PARAMS, Ledger(self.places.ledger), log)
            self.dvc.listings[""] = frozenset(self.arrived())
            return applier.run(found.get, self.dvc, self.record)

    def arrived(self) -> list[str]:
        below = self.raw / ARRIVED
        return sorted(path.relative_to(below).as_posix() for path in below.rglob("*.png"))

    def state(self) -> tuple[object, ...]:
        """What must not depend on where a run died."""
        entries = sorted((e.key, e.state, e.part) for e in Ledger(self.places.ledger).entries())
        standing = sorted((sha256, s.label.label, s.outcome) for sha256, s in self.log.standing().items())
        kept = sorted(path.name for path in self.places.review.rglob("*.png"))
        signed = arrivals._labels_file(self.raw)
        return self.arrived(), entries, standing, kept, signed.read_text("utf-8") if signed.exists() else ""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "project")
    made.make()
    return made


def shown(desk: ReviewSession, name: str) -> list[str]:
    return [item["name"] for queue in desk.state()["queues"] if queue["name"] == name for item in queue["items"]]


def by_name(desk: ReviewSession, name: str) -> str:
    return next(
        item["id"] for queue in desk.state()["queues"] for item in queue["items"] if item["name"].startswith(name)
    )


def test_the_queues_are_in_the_order_in_which_a_look_pays(world: World) -> None:
    desk = world.desk()
    assert shown(desk, "held") == ["h21__a.png", "h20__a.png"]
    assert shown(desk, "near") == ["31.png", "32.png", "30.png", "33.png"]
    assert shown(desk, "alarms") == ["33.png", "32.png"]
    assert desk.state()["total"] == 6


def test_false_alarms_of_the_evaluation_are_in_the_queue_of_alarms(world: World) -> None:
    reports = Layout(world.root, "nuts").reports
    reports.mkdir(parents=True)
    (reports / "metrics.json").write_text(json.dumps({"classes": {"nut": {"threshold": 5.0}}}), "utf-8")
    head = "class,sample_id,path,label,kind,image_score,decision,outcome\n"
    rows = "nut,a,raw/nuts/nut/good/1.png,normal,good,6.5,defect,false_alarm\n"
    gone = (
        "nut,b,raw/nuts/nut/good/99.png,normal,good,6.5,defect,false_alarm\nnut,c,../../x,normal,good,6,,false_alarm\n"
    )
    (reports / "images.csv").write_text(head + rows + gone, "utf-8")
    desk = world.desk()
    assert shown(desk, "alarms") == ["33.png", "1.png", "32.png"]
    desk.label(by_name(desk, "1.png"), "defect", "Ada")
    (row,) = csv.DictReader((world.places.review / "disagreements.csv").read_text("utf-8").splitlines())
    assert (row["label"], row["person"], row["outcome"]) == ("defect", "Ada", "only noted")
    assert "never teaches" in world.apply().lines[1]
    assert world.arrived() == []


def test_the_newest_label_counts_and_undo_takes_it_back(world: World) -> None:
    desk = world.desk()
    first = by_name(desk, "h21")
    desk.label(first, "good", "Ada")
    desk.label(first, "good", "Ada")
    assert [label.label for label in world.log.read()] == ["good"]
    desk.label(first, "defect", "Ada")
    assert [(label.label, label.score, label.origin) for label in world.log.pending()] == [("defect", 9.0, "held")]
    assert desk.undo("Bob") is None
    undone = desk.undo("  Ada\n")
    assert undone is not None
    assert undone.sha256 == first
    assert world.log.pending() == []
    assert shown(desk, "held") == ["h21__a.png", "h20__a.png"]
    assert [label.label for label in world.log.read()] == ["good", "defect", "undo"]


def test_a_skipped_image_waits_apart(world: World) -> None:
    desk = world.desk()
    desk.label(by_name(desk, "h21"), "skip", "Ada")
    assert (shown(desk, "held"), shown(desk, "skipped")) == (["h20__a.png"], ["h21__a.png"])
    assert desk.state()["done"] == 0


@pytest.mark.parametrize("who", ["", " \n", "\x00\x07"])
def test_a_label_needs_a_name(world: World, who: str) -> None:
    desk = world.desk()
    with pytest.raises(ConfigError, match="who"):
        desk.label(by_name(desk, "h21"), "good", who)


def test_an_image_of_no_queue_takes_no_label(world: World) -> None:
    with pytest.raises(DataError, match="no"):
        world.desk().label("0" * 64, "good", "Ada")


def test_a_line_that_a_crash_cut_off_does_not_count(world: World) -> None:
    log = world.log
    log.append(said("a", "good"))
    with world.places.labels.open("ab") as file:
        file.write(b'{"sha256": "b", "lab')
    assert [label.sha256 for label in world.log.read()] == ["a"]
    world.log.append(said("c", "defect"))
    assert [label.sha256 for label in world.log.read()] == ["a", "c"]


def test_apply_makes_one_version_with_who_and_when(world: World) -> None:
    desk = world.desk()
    for name, word in (("h21", "defect"), ("h20", "good"), ("33", "defect"), ("32", "good")):
        desk.label(by_name(desk, name), word, "Ada Müller")  # type: ignore[arg-type]
    done = world.apply()
    assert [name.rpartition("-")[0] or name for name in world.arrived()] == [
        *("nut/defect/reviewed/33", "nut/defect/reviewed/h21__a.png", "nut/good/32", "nut/good/h20__a.png"),
    ]
    assert "4 images came into the dataset (2 nut/defect/reviewed, 2 nut/good)" in done.lines[0]
    (message,) = world.commits
    assert message.startswith("nuts: 4 images labelled (2 nut/defect/reviewed, 2 nut/good)\n")
    assert message.count(", labelled defect by Ada Müller at 2") == 2
    signed = arrivals.signatures(world.raw)
    assert sorted(f"{ARRIVED}/{name}" for name in world.arrived()) == sorted(signed)
    desk.refresh()
    assert shown(desk, "near") == ["31.png", "30.png"]
    assert shown(desk, "held") == []
    assert "nothing to apply" in world.apply().lines[0]
    assert len(world.commits) == 1


def test_labels_show_in_the_manifest_and_no_defect_is_learnt_from(world: World) -> None:
    desk = world.desk()
    desk.label(by_name(desk, "h21"), "defect", "Ada")
    desk.label(by_name(desk, "32"), "good", "Ada")
    world.apply()
    build.build(world.root, PARAMS)
    rows = manifests.read(Layout(world.root, "nuts").manifest)
    rows = rows[rows["path"].str.contains(ARRIVED) & ~rows["path"].str.startswith("gate/")].set_index("label")
    assert rows.loc["defect", "split"] == "gate"
    assert rows.loc["normal", "split"] in ("train", "calibrate")
    assert rows.loc["defect", "source"].startswith("folder, labelled by Ada at 20")


def test_a_labelled_defect_needs_no_mask_where_others_have_one(world: World) -> None:
    images.write(world.raw / "nut" / "dent" / "d.png", photograph(50))
    images.write(world.raw / "nut" / "masks" / "dent" / "d.png", np.ones((48, 48), dtype=np.bool_))
    desk = world.desk()
    desk.label(by_name(desk, "h21"), "defect", "Ada")
    world.apply()
    assert "reviewed" in {found.kind for found in sources.scan("folder", world.raw)}
    build.build(world.root, PARAMS)
    assert facts._mask_kept(manifests.read(Layout(world.root, "nuts").manifest)).all()


def test_what_the_dataset_has_or_can_not_take_is_said_and_left(world: World) -> None:
    world.score({3: 6.0, 34: 7.0, 35: 8.0})
    images.write(world.root / "belt" / "35.png", np.zeros((8, 90, 3), dtype=np.float32))
    text = (world.root / "scores/pvqae-nuts-nut/belt/scores.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in text]
    rows[2]["sha256"] = digest(world.root / "belt" / "35.png")
    file = world.root / "scores/pvqae-nuts-nut/belt/scores.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    desk = world.desk()
    for name in ("3.png", "34.png", "35.png"):
        desk.label(by_name(desk, name), "good", "Ada")
    (world.root / "belt" / "34.png").unlink()
    lines = world.apply().lines
    assert world.arrived() == []
    assert any("the same file as nut/good/3.png" in line for line in lines)
    assert any("gone or changed" in line for line in lines)
    assert any("expected 48 x 48 pixels" in line for line in lines)
    assert world.log.pending() == []


def test_a_damaged_line_of_scores_hides_no_other_image(world: World) -> None:
    world.score({3: 6.0, 34: 7.0, 35: 8.0})
    file = world.root / "scores/pvqae-nuts-nut/belt/scores.jsonl"
    before = set(shown(world.desk(), "near"))
    assert len(before) > 2
    first, second, *others = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([first, second[: len(second) // 2], '{"score": 3}', *others, ""]), "utf-8")
    assert len(before - set(shown(world.desk(), "near"))) <= 1


def odd_gate(world: World) -> tuple[Entry, Entry]:
    """Two parts that went to the gate unseen, which the champion scores far too high, and one that the dataset has."""
    found = []
    for number in (40, 41):
        name = f"g{number}__a-{number}.png"
        file = world.raw / ARRIVED / "nut" / "gate" / name
        images.write(file, photograph(number))
        found.append(Entry(f"nut/g{number}__a.png", "e", 1, "versioned", "v", "nut", digest(file), name, "gate"))
    Ledger(world.places.ledger).append(found)
    rows = [(f"{ARRIVED}/nut/gate/{entry.name}", entry.sha256, 8.0 + n) for n, entry in enumerate(found)]
    rows.append(("nut/good/2.png", digest(world.raw / "nut" / "good" / "2.png"), 7.0))
    kept = [GateNormal(path, "s", "nut", sha256, "3", 0.25, score, 5.0) for path, sha256, score in rows]
    text = "".join(json.dumps(asdict(one)) + "\n" for one in kept)
    world.places.gate_scores.write_text(text, "utf-8")
    return found[0], found[1]


def test_a_wrong_photograph_of_the_gate_is_listed_and_taken_out(world: World) -> None:
    first, second = odd_gate(world)
    desk = world.desk()
    assert shown(desk, "gate") == [second.name, first.name, "2.png"]
    desk.label(first.sha256, "neither", "Ada")
    desk.label(second.sha256, "defect", "Ada")
    desk.label(by_name(desk, "2.png"), "neither", "Ada")
    assert desk.state()["pending"] == {"good": 0, "defect": 1, "neither": 2}
    done = world.apply()
    assert world.arrived() == [f"nut/defect/reviewed/{second.name}"]
    assert done.lines[0].startswith("1 images came into the dataset (1 nut/defect/reviewed), 1 images were taken out")
    assert any("nut/good/2.png: only noted" in line for line in done.lines)
    assert (world.raw / "nut" / "good" / "2.png").is_file()
    assert f"nut/gate/{first.name} taken out, labelled neither by Ada" in world.commits[0]
    (row,) = csv.DictReader((world.places.home / "quarantine" / "quarantine.csv").read_text("utf-8").splitlines())
    assert (row["object"], row["file"]) == ("nut/g40__a.png", f"nut/{first.name}")
    desk.refresh()
    assert shown(desk, "gate") == []


def test_a_normal_of_the_gate_that_a_person_confirms_stays_and_is_not_asked_for_again(world: World) -> None:
    first, _ = odd_gate(world)
    desk = world.desk()
    desk.label(first.sha256, "good", "Ada")
    assert "no image came into the dataset" in world.apply().lines[0]
    assert f"nut/gate/{first.name}" in world.arrived()
    assert world.commits == []
    desk.refresh()
    assert first.name not in shown(desk, "gate")


def test_what_is_neither_never_comes_in(world: World) -> None:
    desk = world.desk()
    for name in ("h21", "32"):
        desk.label(by_name(desk, name), "neither", "Ada")
    done = world.apply()
    assert (world.arrived(), world.commits, done.admitted) == ([], [], ())
    assert done.lines[0] == "no image came into the dataset"
    assert [path.name for path in (world.places.home / "quarantine" / "nut").iterdir()] == ["h21__a.png"]
    assert {s.outcome[: len("out of the dataset")] for s in world.log.standing().values()} == {"out of the dataset"}
    desk.refresh()
    assert "32.png" not in shown(desk, "near")
    assert world.log.pending() == []


def test_what_a_person_took_out_can_be_brought_back(world: World) -> None:
    desk = world.desk()
    held = by_name(desk, "h21")
    desk.label(held, "neither", "Ada")
    world.apply()
    desk.refresh()
    assert shown(desk, "labelled") == ["h21__a.png"]
    desk.label(held, "good", "Bob")
    assert "1 images came into the dataset (1 nut/good)" in world.apply().lines[0]
    assert world.arrived() == ["nut/good/h21__a.png"]
    assert not list((world.places.home / "quarantine").rglob("*.png"))
    assert not [e for e in Ledger(world.places.ledger).entries() if e.state == "quarantined"]


def test_only_the_labels_that_were_named_are_applied(world: World) -> None:
    desk = world.desk()
    for name in ("h20", "h21"):
        desk.label(by_name(desk, name), "good", "Ada")
    with world.log.writing():
        first = world.log.pending()[0]
        applier = Applier(world.places, PARAMS, Ledger(world.places.ledger), world.log)
        applier.run(lambda _: None, world.dvc, world.record, [first])
    assert world.arrived() == ["nut/good/h20__a.png"]
    assert [label.path for label in world.log.pending()] == ["nut/h21__a.png"]


def test_what_was_labelled_before_can_be_labelled_again_and_undone(world: World) -> None:
    desk = world.desk()
    held, scored = by_name(desk, "h21"), by_name(desk, "32")
    desk.label(held, "good", "Ada")
    desk.label(scored, "defect", "Ada")
    world.apply()
    desk.refresh()
    assert shown(desk, "labelled") == ["32.png", "h21__a.png"]
    assert len(arrivals.signatures(world.raw)) == 2
    desk.label(held, "skip", "Ada")  # says nothing of what is in the dataset
    desk.label(held, "neither", "Ada")
    desk.label(scored, "good", "Ada")
    desk.refresh()
    assert shown(desk, "near") == ["31.png", "30.png", "33.png"]
    assert desk.undo("Ada") is not None
    assert [label.label for label in world.log.pending()] == ["neither"]
    assert desk.state()["queues"][-1]["items"][0]["reason"].startswith("labelled defect by Ada")
    desk.label(scored, "good", "Bob")
    done = world.apply()
    (kept,) = world.arrived()
    assert kept.startswith("nut/good/32-")
    assert "1 images came into the dataset (1 nut/good), 1 images were taken out of the dataset" in done.lines[0]
    (signed,) = arrivals.signatures(world.raw).values()
    assert (signed["label"], signed["who"]) == ("good", "Bob")


# What they call of the log appends whole lines or nothing, which has tests of its own.
WATCHED = tuple(str(module.__file__) for module in (admission, apply, arrivals_, ledger))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_death_at_any_line_of_apply_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(index, "_exposure_misfit", lambda image, own: "")
    template = World(tmp_path / "template")
    template.make(normals=3)
    index.Index.build(sources.scan("folder", template.raw), template.raw, template.places.home / "index.npz")
    desk = template.desk()
    for name, word in (("h21", "defect"), ("h20", "good"), ("32", "good")):
        desk.label(by_name(desk, name), word, "Ada")  # type: ignore[arg-type]
    for gone, word in zip(odd_gate(template), ("neither", "defect"), strict=True):
        template.log.append(said(gone.sha256, word, category="nut", origin="gate", path=gone.key))  # type: ignore[arg-type]

    def fresh(name: str) -> World:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(template.root, tmp_path / "copy")
        return World(tmp_path / "copy")

    undisturbed = fresh("whole")
    reached = traced(undisturbed.apply, WATCHED, None)
    expected = undisturbed.state()
    assert len(undisturbed.arrived()) == 4
    spots = {(*place, count - 1) for place, count in reached.items()}
    assert len(spots) > 60
    for spot in sorted(spots):
        world = fresh("dies")
        traced(world.apply, WATCHED, spot)
        world.apply()
        assert world.state()[0] == expected[0], spot
        assert world.state()[1:2] == expected[1:2], spot
        assert world.state()[3:] == expected[3:], spot
        outcomes = {s.outcome for s in world.log.standing().values()}
        assert outcomes == {"in the dataset as good", IN_GATE, f"out of the dataset: {said('', 'neither').words()}"}, (
            spot
        )
        assert len(world.commits) == 1, spot


IN_GATE = "in the dataset as defect/reviewed"
OUT = f"out of the dataset: {said('', 'neither').words()}"
