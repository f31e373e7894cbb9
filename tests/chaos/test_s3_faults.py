"""A landing bucket on bad days: whatever it answers, each object comes in once and whole, and waiting is bounded."""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeVersioning
from flows.adapters.landing import Bucket, LandingError
from flows.retrain import arrivals, index
from flows.retrain.admission import admit
from flows.retrain.arrivals import Intake
from flows.retrain.ledger import IntakePaths, Ledger, Taken
from flows.serving.score import _Bucket as Scored
from pvqae.core import config
from pvqae.core.files import digest
from pvqae.core.layout import ARRIVED
from tests.chaos.faulty_s3 import GHOST, OF_LISTS, OF_OBJECTS, FaultyS3, in_front_of, plan
from tests.chaos.figures import Figure, record, size
from tests.flows.adapters.test_landing import client, point_at, server  # noqa: F401 - the fixture of a real server
from tests.flows.retrain.test_arrivals import encoded, photograph

SEED = 20
RETRIES, PAUSE = 2, 0.01
PATIENCE = 0.2  # seconds that a silent server is given
STALL = 0.5
RUNS = 12  # of the intake, in which all faults must have been got over
PARAMS = config.parse({"retrain": {"screen_margin": 9.0}})


def screen(category: str, path: Path) -> tuple[float, float]:
    """A champion that likes everything."""
    return 0.0, 1.0


class Plant:
    """A dataset that takes in what arrives in a bucket."""

    def __init__(self, root: Path, area: Bucket) -> None:
        self.area, self.places, self.dvc = area, IntakePaths(root, "nuts"), FakeVersioning()
        self.raw = root / "data" / "raw" / "nuts"
        self.raw.mkdir(parents=True)

    def run(self) -> Taken:
        ledger = Ledger(self.places.ledger)
        items, waiting = arrivals.new_objects(self.area, ledger, ["nut"], ["nut"], 1000)
        known = index.Index()
        taken = Intake(self.area, self.places, ledger, known, screen, PARAMS).take(items, waiting)
        admit(self.places, self.raw, ledger, self.dvc, lambda message: "")
        return taken

    def broken(self, contents: dict[str, str]) -> list[str]:
        """What was lost, doubled or changed. `contents`: key → sha256."""
        entries = Ledger(self.places.ledger).entries()
        lines = self.places.ledger.read_text("utf-8") if self.places.ledger.exists() else ""
        decided = Counter(entry.key for entry in entries if not entry.key.endswith(GHOST))
        found = [f"{key}: {decided[key]} decisions" for key in set(contents) | set(decided) if decided[key] != 1]
        found += [f"{entry.key}: {entry.state}: {entry.reason}" for entry in entries if entry.state != "versioned"]
        there = Counter(digest(path) for path in (self.raw / ARRIVED).rglob("*.png"))
        return found + ([] if there == Counter(contents.values()) else [f"other files in the dataset: {lines}"])


@pytest.fixture
def front(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:  # noqa: F811
    with in_front_of(server, STALL) as found:
        point_at(server, monkeypatch)
        for row in client().list_objects_v2(Bucket="shore").get("Contents", ()):
            client().delete_object(Bucket="shore", Key=row["Key"])
        yield found


def put(number: int, folder: str) -> dict[str, str]:
    """New photographs in the bucket; key below the landing area → sha256."""
    found = {}
    for seed in range(number):
        data = encoded(photograph(seed))
        client().put_object(Bucket="shore", Key=f"{folder}/nut/{seed:03}.png", Body=data)
        found[f"nut/{seed:03}.png"] = hashlib.sha256(data).hexdigest()
    return found


def landing(front: FaultyS3, monkeypatch: pytest.MonkeyPatch, folder: str) -> Bucket:
    point_at(front.server_port, monkeypatch)
    return Bucket("shore", folder, RETRIES, PAUSE, patience=PATIENCE)


def test_faults_of_the_bucket_lose_and_double_nothing(
    front: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    rng = random.Random(SEED)
    contents = put(size(12, 80), "days")
    plant = Plant(tmp_path, landing(front, monkeypatch, "days"))
    front.of_key = {Path(key).name: plan(rng, OF_OBJECTS, 5) for key in contents}
    front.of_lists = [rng.choice(OF_LISTS) for _ in range(size(6, 30))]
    slowest, failed, late = 0.0, 0, []
    for _ in range(size(RUNS, 6 * RUNS)):
        start, before = time.monotonic(), len(front.met)
        try:
            failed += len(plant.run().failed)
        except LandingError:
            failed += 1
        seconds, met = time.monotonic() - start, len(front.met) - before
        slowest = max(slowest, seconds)
        late += [f"{seconds:.1f} s for {met} faults"] if seconds > bound(len(contents), met) else []
    left = [fault for faults in front.of_key.values() for fault in faults] + front.of_lists
    broken = plant.broken(contents)
    note = f"{len(contents)} objects, {failed} reads put off to a later run; the slowest run {slowest:.1f} s"
    what = "faults of S3: each object in the dataset once, its bytes whole"
    tried = len(front.met)
    record(Figure("30_s3", what, tried, tried - len(broken), len(broken), time.monotonic() - began, note))
    assert not broken, f"seed {SEED}: {broken}"
    assert not left, f"seed {SEED}: these faults were never met: {left}"
    assert not late, f"seed {SEED}: {late}"


def bound(objects: int, met: int) -> float:
    """Seconds that one run may take: a fault costs a silence and at most the longest pause before a third try, 2 s."""
    return 10.0 + objects * 0.3 + met * (STALL + 2.0)


@pytest.mark.parametrize("fault", OF_OBJECTS)
def test_an_object_that_never_arrives_is_left_to_the_next_run(
    front: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    contents = put(2, f"bad {fault}")
    plant = Plant(tmp_path, landing(front, monkeypatch, f"bad {fault}"))
    front.of_key = {"000.png": [fault] * 50}
    began = time.monotonic()
    taken = plant.run()
    assert [entry.key for entry in taken.entries] == ["nut/001.png"]
    assert len(taken.failed) == 1
    assert "nut/000.png" in taken.failed[0]
    assert time.monotonic() - began < 15
    front.of_key = {}
    assert [entry.key for entry in plant.run().entries] == ["nut/000.png"]
    assert not plant.broken(contents)


@pytest.mark.parametrize("fault", ["slowdown", "stall", "cut", "short", "garbage", "reset"])
def test_a_listing_that_stays_bad_is_an_error_that_names_the_area(
    front: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    put(1, "unlisted")
    plant = Plant(tmp_path, landing(front, monkeypatch, "unlisted"))
    front.of_lists = [fault] * 50
    with pytest.raises(LandingError, match="s3://shore/unlisted/"):
        plant.run()
    assert not Ledger(plant.places.ledger).entries()


def test_objects_that_stay_bad_keep_out_nothing_and_come_when_they_are_well(
    front: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = put(10, "ill")
    plant = Plant(tmp_path, landing(front, monkeypatch, "ill"))
    front.of_key = {Path(key).name: ["flip"] * 50 for key in contents}
    taken = plant.run()
    assert not taken.entries
    assert len(taken.failed) == 10
    front.of_key = {}
    plant.run()
    assert not plant.broken(contents)


def test_scoring_a_bucket_names_what_it_could_not_fetch(
    front: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1, "scored")
    source = Scored(landing(front, monkeypatch, "scored"), "s3://shore/scored")
    [item] = source.items()
    front.of_key = {"000.png": ["flip"] * 50}
    with pytest.raises(LandingError, match=r"nut/000\.png"):
        source.file(item, tmp_path)
