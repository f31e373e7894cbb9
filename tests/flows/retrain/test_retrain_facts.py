"""The facts of the decision from twins of the registry and DVC; what of a card makes the screening's limit."""

import datetime
import itertools
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeRegistry, FakeVersioning
from flows.adapters.tracking import Promotion
from flows.retrain.admission import _age_days, _facts_of, _would_take
from flows.retrain.arrivals import Champions, _limit
from flows.retrain.ledger import Entry, IntakePaths, Ledger, State, Taken
from flows.retrain.retrain_policy import ClassFacts, Facts
from flows.retrain.watch import landing_area, params_of, refuse_made
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.datasets import arrivals, build, sources, splits

MODEL = "pvqae-nuts-nut"
PARAMS = config.parse({"data": {"name": "nuts", "source": "folder"}})


def _by_hash(split: str) -> "itertools.filterfalse[str]":
    """Names of arrived normals that fall into a split."""
    shares = PARAMS.data.shares
    names = (f"a-{number}" for number in itertools.count())

    def elsewhere(name: str) -> bool:
        return splits._of_normals(arrivals.group_id("nut", f"{name}.png"), shares, False, True) != split

    return itertools.filterfalse(elsewhere, names)


LEARNT, TESTED = tuple(itertools.islice(_by_hash("train"), 2)), next(_by_hash("test"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def move(version: str, alias: str, when: str = "2026-01-01T00:00:00.000000Z") -> Promotion:
    return Promotion(when, "me", alias, "none", version, "initial", (), "run")


def facts(root: Path, registry: FakeRegistry, dvc: FakeVersioning, taken: Taken | None = None) -> ClassFacts:
    found = sources.scan("folder", root / "data" / "raw" / "nuts")
    places = IntakePaths(root, "nuts")
    asked = Facts("manual", "", "", ())
    chosen, ledger = build.splits_of(found, PARAMS), Ledger(places.ledger)
    return _facts_of(asked, registry, dvc, found, chosen, ledger, places, taken or Taken()).classes[0]


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, FakeRegistry, FakeVersioning]:
    """Version 1 is champion and saw two normals; since then four came: one for the gate, by hash one for the test."""
    raw, registry = tmp_path / "data" / "raw" / "nuts", FakeRegistry()
    names = (*(f"arrived/nut/good/{name}.png" for name in LEARNT), f"arrived/nut/good/{TESTED}.png")
    names = (*names, "arrived/nut/gate/c-3.png")
    touch(raw, "nut/good/1.png", "nut/good/2.png", "nut/dent/3.png", *names)
    registry.register(MODEL, "run", "models:/m", {"data_hash": "old.dir"})
    registry.promote(MODEL, "champion", move("1", "champion"))
    seen = frozenset({"nut/good/1.png", "nut/good/2.png", "nut/dent/3.png"})
    return tmp_path, registry, FakeVersioning(hashes={"nuts": "new.dir"}, listings={"old.dir": seen})


def test_new_normals_are_those_that_the_champion_has_not_seen(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    found = facts(*world)
    assert (found.category, found.champion, found.new_normals) == ("nut", "1", 2)
    assert (found.new_tests, found.new_gates, found.unseen) == (1, 1, 0)
    assert (found.trained, found.judged) == ("", False)


def test_a_champion_of_forgotten_data_is_said_to_be_unknown(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    root, registry, dvc = world
    dvc.listings.clear()
    assert facts(root, registry, dvc).new_normals is None
    assert facts(root, FakeRegistry(), dvc) == ClassFacts("nut", "", None, None)


def test_a_version_of_this_data_counts_when_it_has_a_name(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    root, registry, dvc = world
    registry.register(MODEL, "run", "models:/n", {"data_hash": "new.dir"})
    assert facts(root, registry, dvc).trained == ""  # killed before its alias: training completes it
    registry.promote(MODEL, "challenger", move("2", "challenger"))
    assert (facts(root, registry, dvc).trained, facts(root, registry, dvc).judged) == ("2", False)
    registry.versions[MODEL][1]["gate_outcome"] = "refused"
    assert facts(root, registry, dvc).judged
    assert facts(root, registry, dvc, Taken(looked={"nut": 5})).trained == ""  # new images: other data


def test_a_dry_run_counts_what_it_has_not_looked_at(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    root, registry, dvc = world
    found = facts(root, registry, dvc, Taken(looked={"nut": 5}))
    assert (found.new_normals, found.unseen) == (7, 5)


def test_held_images_are_counted_while_they_are_there(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    root, registry, dvc = world
    places = IntakePaths(root, "nuts")
    entry = Entry("nut/x.png", "e", 1, "review", "odd", "nut", "0" * 64, "x-0.png", "good")
    Ledger(places.ledger).append([entry])
    assert facts(root, registry, dvc).in_review == 0  # a person has removed it
    touch(places.review, "nut/x-0.png")
    assert facts(root, registry, dvc).in_review == 1


def test_age_counts_from_the_first_alias() -> None:
    registry, now = FakeRegistry(), datetime.datetime(2026, 1, 11, tzinfo=datetime.UTC)
    registry.register(MODEL, "run", "model", {})
    registry.promote(MODEL, "challenger", move("1", "challenger"))
    registry.promote(MODEL, "champion", move("1", "champion", "2026-01-09T00:00:00.000000Z"))
    assert _age_days(registry, MODEL, "1", now) == pytest.approx(10)
    assert _age_days(registry, MODEL, "2", now) is None


def test_the_limit_lies_above_every_calibration_score() -> None:
    card = {"scores": [1.0, 2.0, 4.0], "threshold": 3.9}
    assert _limit(card, 0.25) == pytest.approx(4.5)
    assert _limit(card, 0) == 4.0
    assert _limit(card | {"threshold": 6.0}, 0.25) == 6.0  # of few normals


def test_a_dataset_that_a_stage_makes_takes_no_arrivals() -> None:
    with pytest.raises(ConfigError, match=r"pvqae data demo .* flows train"):
        refuse_made(config.Params())


def test_the_params_of_a_trained_dataset_keep_the_projects_present_services(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("landing: {url: s3://now/here}\n", "utf-8")
    assert params_of(tmp_path, "") == params_of(tmp_path, "demo") == ""
    with pytest.raises(ConfigError, match="was trained here"):
        params_of(tmp_path, "nuts")
    saved = tmp_path / ".pvqae" / "runs" / "nuts" / "params.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text("data: {name: nuts, source: folder}\ntrain: {steps: 7}\nlanding: {url: then}\n", "utf-8")
    found = config.load(params_of(tmp_path, "nuts"))
    assert (found.data.name, found.train.steps, found.landing.url) == ("nuts", 7, "s3://now/here")
    assert workspace.params_sha256(found) == workspace.params_sha256(config.load(saved))


def test_a_dry_run_only_looks(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    root, registry, _ = world
    touch(root / "shore", "nut/1.png", "nut/2.png", "bolt/1.png", "nut/note.txt", "bolt/note.txt", "readme.txt")
    params = config.parse({"data": {"name": "nuts", "source": "folder"}, "landing": {"url": "shore"}})
    champions = Champions(registry, "nuts", root / "bundles", 0.25)
    taken = _would_take(root, params, Ledger(root / "ledger"), ["nut"], champions)
    assert (taken.looked, taken.others) == ({"nut": 2}, 1)
    strange = next(reason for reason in taken.waiting if "bolt/" in reason)
    assert taken.waiting == {strange: 1, "no image: remove it from the landing area, or export it as PNG": 2}
    said = "6 new objects: 2 would be looked at, 1 would be quarantined, 3 wait"
    assert taken.lines[:2] == (said, "a dry run: 2 images would be looked at: 2 nut")
    assert not (root / "ledger").exists()
    assert not (root / ".pvqae").exists()
    assert landing_area(root, PARAMS) is None


def test_a_class_without_a_champion_waits_untouched(world: tuple[Path, FakeRegistry, FakeVersioning]) -> None:
    root, _, _ = world
    touch(root / "shore", "nut/1.png")
    params = config.parse({"data": {"name": "nuts", "source": "folder"}, "landing": {"url": "shore"}})
    taken = _would_take(
        root, params, Ledger(root / "ledger"), ["nut"], Champions(FakeRegistry(), "nuts", root / "b", 0.25)
    )
    assert taken.waiting == {"nut has no champion yet: run `python -m flows train` first": 1}
    assert taken.lines[0] == "1 new objects: 1 wait"


def test_every_object_is_counted_once_and_tables_are_named() -> None:
    def entry(state: State, number: int) -> Entry:
        return Entry(f"nut/{number}.png", "e", 1, state, "", "nut")

    states: tuple[State, ...] = ("accepted", "accepted", "review", "quarantined")
    taken = Taken(
        tuple(map(entry, states, range(4))),
        failed=("nut/x.png: gone",),
        waiting={"later": 2},
        unseen=("page 2",),
        tables={"quarantined": "q/quarantine.csv", "review": "r/review.csv"},
    )
    assert taken.lines == (
        "7 new objects: 2 accepted, 1 quarantined, 1 held back, 2 wait, 1 did not arrive",
        "quarantined: reasons in q/quarantine.csv",
        "held back: reasons in r/review.csv",
        "2 wait: later",
        "not listed: page 2",
        "did not arrive: nut/x.png: gone",
    )
    assert Taken().lines == ("no new objects",)
