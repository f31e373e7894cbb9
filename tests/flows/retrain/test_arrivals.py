"""The intake with twins in memory: what it takes, what it leaves, and a death at every line of it."""

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.adapters import git
from flows.adapters.fakes import FakeLanding, FakeVersioning
from flows.adapters.landing import Folder, LandingError, Object
from flows.adapters.versioning import Dvc
from flows.core.processes import Supervisor
from flows.retrain import admission, arrivals, index, ledger
from flows.retrain.admission import admit
from flows.retrain.arrivals import Intake
from flows.retrain.index import Index
from flows.retrain.ledger import Entry, IntakePaths, Label, LabelLog, Ledger, Taken
from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.layout import ARRIVED
from pvqae.datasets import sources, splits
from pvqae.datasets.arrivals import file_name, group_id
from pvqae.samples import images
from pvqae.samples.images import Floats
from tests.flows.deaths import Killed, traced

SIZE = 48
PARAMS = config.parse({"landing": {"max_bytes": 100_000}})


def photograph(seed: int, level: float = 0.4) -> Floats:
    """A part: smooth blotches, other ones for each seed."""
    coarse = Image.fromarray(np.random.default_rng(seed).random((6, 6), dtype=np.float32))
    smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.repeat(np.clip(level + 0.3 * smooth, 0, 1)[..., None], 3, axis=2).astype(np.float32)


def encoded(image: Floats, form: str = "PNG", **more: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(out, form, **more)
    return out.getvalue()


def kept_for_training(key: str, data: bytes) -> bool:
    """Whether the gate's share leaves this image out."""
    name = file_name(key, hashlib.sha256(data).hexdigest())
    return splits.fraction("arrived", group_id("nut", name)) >= PARAMS.retrain.gate_share


DEFECT_LEVEL = 0.55


def screen(category: str, path: Path) -> tuple[float, float]:
    """A champion that dislikes bright parts."""
    return float(images.read(path).mean()) * 10, 6.3


@dataclass
class World:
    """One dataset, its landing area and its versions."""

    root: Path
    shelf: FakeLanding = field(default_factory=FakeLanding)
    dvc: FakeVersioning = field(default_factory=FakeVersioning)
    commits: list[str] = field(default_factory=list)

    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw" / "nuts"

    @property
    def places(self) -> IntakePaths:
        return IntakePaths(self.root, "nuts")

    def index(self) -> Index:
        return Index.build(sources.scan("folder", self.raw), self.raw, self.places.home / "index.npz")

    def arrived(self) -> list[str]:
        below = self.raw / ARRIVED
        return sorted(path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_file())

    def run(self) -> Taken:
        """What the retrain flow does with the dataset's lock held."""
        ledger = Ledger(self.places.ledger)
        ledger.release(self.places)
        items, waiting = arrivals.new_objects(self.shelf, ledger, ["nut"], ["nut"], 1000)
        taken = Intake(self.shelf, self.places, ledger, self.index(), screen, PARAMS).take(items, waiting)
        self.dvc.listings[""] = frozenset(self.arrived())
        admit(self.places, self.raw, ledger, _Seeing(self), self.record)
        return taken

    def record(self, message: str) -> str:
        if not self.commits or self.commits[-1] != message:  # git makes no commit that changes nothing
            self.commits.append(message)
        return str(len(self.commits))

    def state(self) -> tuple[object, ...]:
        """All that must not depend on where a run died."""
        entries = sorted((e.key, e.state, e.name, e.part) for e in Ledger(self.places.ledger).entries())
        held = sorted(p.name for p in self.places.review.rglob("*.png"))
        bad = sorted(p.name for p in (self.places.home / "quarantine").rglob("*") if p.is_file())
        return self.arrived(), entries, held, bad, self.dvc.data_hash("nuts")


class _Seeing(FakeVersioning):
    """The twin of DVC, that looks at the files when it makes a version."""

    def __init__(self, world: World) -> None:
        self._world = world
        super().__init__(hashes=world.dvc.hashes, listings=world.dvc.listings)

    def version_dataset(self, name: str) -> bool:
        self.listings[""] = frozenset(self._world.arrived())
        return super().version_dataset(name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A class `nut` of ten photographs, and a landing area with one object of each kind."""
    made = World(tmp_path)
    for seed in range(10):
        images.write(made.raw / "nut" / "good" / f"{seed}.png", photograph(seed))
    made.shelf.content = landed(made.raw)
    return made


def landed(raw: Path) -> dict[str, bytes]:
    content = {f"nut/{day}/p{seed}__top.png": encoded(photograph(seed)) for day, seed in enumerate(range(100, 112))}
    number = next(n for n in range(50) if kept_for_training("nut/defect.png", encoded(photograph(200 + n, 0.55))))
    return content | {
        "nut/defect.png": encoded(photograph(200 + number, DEFECT_LEVEL)),
        "nut/same.png": (raw / "nut" / "good" / "3.png").read_bytes(),
        "nut/again.jpg": encoded(photograph(4), "JPEG", quality=75),
        "nut/twice.png": content["nut/2/p102__top.png"],
        "nut/cut.png": content["nut/1/p101__top.png"][:300],
        "nut/note.txt": b"hello",
        "nut/huge.png": b"0" * 100_001,
        "nut/small.png": encoded(photograph(300)[:20, :20]),
        "nut/black.png": encoded(np.zeros((SIZE, SIZE, 3), dtype=np.float32)),
        "bolt/1.png": encoded(photograph(1)),
    }


def listed(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text("utf-8"))))


def by_key(world: World) -> dict[str, Entry]:
    return {entry.key: entry for entry in Ledger(world.places.ledger).entries()}


def test_each_object_lands_in_one_place_with_its_reason(world: World) -> None:
    taken = world.run()
    found = by_key(world)
    assert {key: found[key].state for key in found if not key.startswith(tuple(f"nut/{n}/" for n in range(12)))} == {
        "nut/defect.png": "review",
        "nut/same.png": "duplicate",
        "nut/again.jpg": "duplicate",
        "nut/twice.png": "duplicate",
        "nut/cut.png": "quarantined",
        "nut/note.txt": "quarantined",
        "nut/huge.png": "quarantined",
        "nut/small.png": "quarantined",
        "nut/black.png": "quarantined",
    }
    for key, word in {
        "nut/defect.png": "champion",
        "nut/same.png": "same file as nut/good/3.png",
        "nut/again.jpg": "same photograph as nut/good/4.png",
        "nut/twice.png": "p102",
        "nut/cut.png": "readable",
        "nut/note.txt": "name ending",
        "nut/huge.png": "100001",
        "nut/small.png": "20 x 20",
        "nut/black.png": "blank",
    }.items():
        assert word in found[key].reason
    good = [entry for entry in found.values() if entry.state == "versioned"]
    assert len(good) == 12
    assert {f"nut/{entry.part}/{entry.name}" for entry in good} == set(world.arrived())
    assert taken.waiting == {"expected CLASS/FILE with one of the classes nut; found bolt/: move them": 1}
    assert "nut/huge.png" not in world.shelf.fetched
    assert "12 images arrived" in world.commits[0]
    assert "p100__top" in world.commits[0]


def test_the_gates_share_is_set_aside_by_the_part_before_screening(world: World) -> None:
    bright = {
        f"nut/b{n}__{view}.png": encoded(photograph(1000 + 2 * n + view, 0.52)) for n in range(40) for view in (0, 1)
    }
    world.shelf.content = bright
    world.run()
    found = by_key(world).values()
    parts: dict[str, set[str]] = {}
    for entry in found:
        parts.setdefault(entry.name.split("__")[0], set()).add(entry.part)
    assert all(len(where) == 1 for where in parts.values())
    gate = [entry for entry in found if entry.part == "gate"]
    assert 8 <= len(gate) <= 26  # 16 of 80 expected, as pairs
    assert all(entry.score is None for entry in gate)  # no champion has seen them
    assert any(entry.state == "review" for entry in found)
    assert not [entry for entry in gate if entry.state == "review"]


def test_the_lists_say_what_to_look_at(world: World) -> None:
    world.run()
    rows = listed(world.places.home / "quarantine" / "quarantine.csv")
    assert {row["object"] for row in rows} == {
        f"nut/{n}" for n in ("cut.png", "note.txt", "huge.png", "small.png", "black.png")
    }
    held = listed(world.places.review / "review.csv")
    assert [row["object"] for row in held] == ["nut/defect.png"]
    assert (world.places.review / held[0]["file"]).is_file()


def test_a_second_run_takes_nothing_and_a_new_content_of_a_key_is_a_new_object(world: World) -> None:
    world.run()
    before, fetched = world.state(), len(world.shelf.fetched)
    assert world.run().entries == ()
    assert (world.state(), len(world.shelf.fetched)) == (before, fetched)
    world.shelf.content["nut/cut.png"] = encoded(photograph(400))
    assert [entry.state for entry in world.run().entries] == ["accepted"]
    assert by_key(world)["nut/cut.png"].state in ("versioned", "quarantined")
    assert len(world.arrived()) == 13


def test_a_person_accepts_a_held_image_by_moving_it(world: World) -> None:
    world.run()
    entry = by_key(world)["nut/defect.png"]
    target = world.places.review / "accepted" / "nut" / entry.name
    target.parent.mkdir(parents=True)
    (world.places.review / "nut" / entry.name).rename(target)
    world.run()
    assert by_key(world)["nut/defect.png"].state == "versioned"
    assert f"nut/good/{entry.name}" in world.arrived()
    assert not target.exists()


def test_what_does_not_arrive_comes_with_the_next_run(world: World) -> None:
    world.shelf.failing = {"nut/5/p105__top.png"}
    assert len(world.run().failed) == 1
    assert len(world.arrived()) == 11
    world.shelf.failing = set()
    world.run()
    assert len(world.arrived()) == 12


def test_a_wrong_photograph_does_not_come_back_under_another_name(world: World) -> None:
    data = encoded(photograph(400))
    sha256 = hashlib.sha256(data).hexdigest()
    LabelLog(world.places.labels).append(Label(sha256, "neither", "Ada", "2026-01-02T03:04:05+00:00", "nut", "scored"))
    world.shelf.content = {"nut/again.png": data}
    world.run()
    entry = by_key(world)["nut/again.png"]
    assert (entry.state, world.arrived()) == ("quarantined", [])
    assert entry.reason == "a wrong photograph, labelled neither by Ada at 2026-01-02T03:04:05+00:00"


def test_a_dead_area_is_not_asked_for_every_object(world: World) -> None:
    ledger = Ledger(world.places.ledger)
    items, waiting = arrivals.new_objects(world.shelf, ledger, ["nut"], ["nut"], 1000)
    world.shelf.dead = True
    taken = Intake(world.shelf, world.places, ledger, world.index(), screen, PARAMS).take(items, waiting)
    assert len(taken.failed) == arrivals._PATIENCE
    decided = len(taken.entries) + arrivals._PATIENCE  # some need no fetch
    assert taken.waiting[arrivals._SILENT] == len(items) - decided


@pytest.mark.parametrize("bad", [3, 7, 30])
@pytest.mark.parametrize("most", [5, 1000])
def test_objects_that_never_arrive_do_not_keep_out_those_behind_them(world: World, bad: int, most: int) -> None:
    ill = {f"nut/0000/{n:03}.png": f"archived {n}".encode() for n in range(bad)}
    world.shelf.content |= ill
    world.shelf.failing = set(ill)
    params = PARAMS.model_copy(update={"landing": PARAMS.landing.model_copy(update={"max_objects": most})})
    came: list[str] = []
    for _ in range(2 + (bad + len(world.shelf.content)) // most):
        ledger = Ledger(world.places.ledger)
        items, waiting = arrivals.new_objects(world.shelf, ledger, ["nut"], ["nut"], params.landing.max_objects)
        taken = Intake(world.shelf, world.places, ledger, world.index(), screen, params).take(items, waiting)
        came += [entry.key for entry in taken.entries]
    assert sorted(came) == sorted(key for key in world.shelf.content if key.startswith("nut/") and key not in ill)
    world.shelf.failing = set()
    for _ in range(1 + bad // most):
        world.run()
    assert not [key for key in ill if key not in by_key(world)]


def test_a_damaged_count_of_tries_is_forgotten(world: World) -> None:
    for text in ("", "[1]", '{"a": "x"}'):
        (world.places.home).mkdir(parents=True, exist_ok=True)
        (world.places.home / "failed.json").write_text(text)
        assert Ledger(world.places.ledger).tries(next(world.shelf.objects())) == 0


def test_one_class_s_broken_champion_does_not_keep_out_the_others(world: World) -> None:
    for seed in range(10):
        images.write(world.raw / "bolt" / "good" / f"{seed}.png", photograph(seed + 50))
    world.shelf.content = {f"{name}/p{n}.png": encoded(photograph(n)) for name, n in (("bolt", 300), ("nut", 301))}

    def broken(category: str, path: Path) -> tuple[float, float]:
        if category == "bolt":
            raise IntegrityError("the champion of bolt is damaged")
        return screen(category, path)

    ledger, params = Ledger(world.places.ledger), config.parse({"retrain": {"gate_share": 0.0}})
    both = ["bolt", "nut"]
    items, _ = arrivals.new_objects(world.shelf, ledger, both, both, 10)
    taken = Intake(world.shelf, world.places, ledger, world.index(), broken, params).take(items)
    assert [entry.key for entry in taken.entries] == ["nut/p301.png"]
    assert taken.failed == ("the champion of bolt is damaged",)


def test_a_name_that_is_no_text_and_a_listing_that_breaks_off_stop_nothing(tmp_path: Path) -> None:
    place = tmp_path / "landing" / "nut"
    place.mkdir(parents=True)
    (place / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    (place / "a.png").write_bytes(encoded(photograph(1)))

    class BreaksOff(Folder):
        def objects(self) -> Iterator[Object]:
            yield from super().objects()
            raise LandingError("page 2 did not come")

    world, area = World(tmp_path), BreaksOff(tmp_path / "landing")
    images.write(world.raw / "nut" / "good" / "0.png", photograph(0))
    ledger = Ledger(world.places.ledger)
    items, waiting = arrivals.new_objects(area, ledger, ["nut"], ["nut"], 10)
    assert waiting.unseen == ("page 2 did not come",)
    taken = Intake(area, world.places, ledger, world.index(), screen, PARAMS).take(items, waiting)
    assert sorted(entry.state for entry in taken.entries) == ["accepted", "quarantined"]
    assert "udcff.png" in (world.places.home / "quarantine" / "quarantine.csv").read_text("utf-8")
    assert len(Ledger(world.places.ledger).entries()) == 2


def test_an_accepted_image_that_is_gone_is_told_of_fetched_again_and_stops_no_other(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Entry("nut/x.png", "e", 1, "accepted", "", "nut", "0" * 64, "x-0.png", "good")
    ledger = Ledger(world.places.ledger)
    ledger.append([entry])
    world.run()
    assert "nut/x.png" in capsys.readouterr().err
    assert len(world.arrived()) == 12
    assert by_key(world)["nut/x.png"].state == "lost"
    assert Object("nut/x.png", "e", 1) not in Ledger(world.places.ledger)


WATCHED = tuple(str(module.__file__) for module in (arrivals, admission, ledger))


# What a killed line had just opened is closed by the collector, as a kernel would close it.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_death_at_any_line_neither_loses_nor_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some 500 runs: without what takes time and is no step. What bounds say has its own test.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(index, "_exposure_misfit", lambda image, own: "")
    template = World(tmp_path / "template")
    for seed in range(5):
        images.write(template.raw / "nut" / "good" / f"{seed}.png", photograph(seed))
    template.index()
    wanted = ("nut/3/", "nut/4/", "nut/defect", "nut/again", "nut/cut", "nut/note")
    content = {key: data for key, data in landed(template.raw).items() if key.startswith(wanted)}

    def fresh(name: str) -> World:
        shutil.copytree(template.root, tmp_path / name)
        return World(tmp_path / name, FakeLanding(content))

    undisturbed = fresh("whole")
    reached = traced(undisturbed.run, WATCHED, None)
    expected = undisturbed.state()
    assert len(undisturbed.arrived()) == 2
    spots = {(*place, n) for place, count in reached.items() for n in (0, count - 1)}
    assert len(spots) > 100
    for number, spot in enumerate(sorted(spots)):
        world = fresh(f"dies-{number}")
        traced(world.run, WATCHED, spot)
        world.run()
        assert world.state() == expected, spot
        assert len(world.commits) == 1, spot


@pytest.mark.parametrize("dies", ["before the commit", "after the commit", ""])
def test_real_versions_and_commits_agree_after_a_death_between_them(project: Path, dies: str) -> None:
    world = World(project)
    for seed in range(3):
        images.write(world.raw / "nut" / "good" / f"{seed}.png", photograph(seed))
    world.shelf.content = {f"nut/p{seed}__a.png": encoded(photograph(seed)) for seed in (101, 102)}
    dvc_file = "data/raw/nuts.dvc"

    def record(message: str) -> str:
        if dies == "before the commit":
            raise Killed
        commit = git.record(project, {f"nuts/{dvc_file}": project / dvc_file}, message)
        if dies:
            raise Killed
        return commit

    with Supervisor() as supervisor:
        dvc = Dvc(project, supervisor)
        dvc.version_dataset("nuts")
        before = dvc.data_hash("nuts")
        ledger = Ledger(world.places.ledger)
        items, _ = arrivals.new_objects(world.shelf, ledger, ["nut"], ["nut"], 10)
        Intake(world.shelf, world.places, ledger, world.index(), screen, PARAMS).take(items)
        if dies:
            with pytest.raises(Killed):
                admit(world.places, world.raw, ledger, dvc, record)
        dies = ""
        admitted = admit(world.places, world.raw, Ledger(world.places.ledger), dvc, record)
        after = dvc.data_hash("nuts")
        seen, now = dvc.listing(before), dvc.listing(after)
    assert seen is not None
    assert now is not None
    assert now - seen == {f"arrived/{name}" for name in world.arrived()}
    assert len(now - seen) == len(admitted) == 2
    assert {entry.reason for entry in admitted} == {after}
    (subject,) = git.git(project, "log", "--format=%s", "pvqae/data").splitlines()
    assert subject.startswith("nuts: 2 images arrived (")
    assert admit(world.places, world.raw, Ledger(world.places.ledger), dvc, record) == ()


def test_a_reader_leaves_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    Ledger(file).append([Entry("a", "1", 1, "duplicate", "", "nut")])
    half = file.read_bytes() + b'{"key": "b"'
    file.write_bytes(half)
    assert [entry.key for entry in Ledger(file).entries()] == ["a"]
    assert file.read_bytes() == half


def test_a_line_that_a_crash_cut_off_does_not_count(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "ledger"), Entry("nut/x.png", "e", 1, "duplicate", "why", "nut")
    ledger.append([entry])
    with (tmp_path / "ledger").open("ab") as file:
        file.write(b'{"key": "nut/y.png", "eta')
    again = Ledger(tmp_path / "ledger")
    again.append([Entry("nut/z.png", "e", 1, "duplicate", "why", "nut")])
    assert [found.key for found in Ledger(tmp_path / "ledger").entries()] == ["nut/x.png", "nut/z.png"]
