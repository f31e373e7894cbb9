"""The landing watcher: tells of images once they have stopped arriving, and only once."""

import json
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeCrashes, FakeNotifier
from flows.adapters.prefect_client import Crash
from flows.retrain import watch
from flows.retrain.ledger import Entry, IntakePaths, Ledger
from flows.retrain.watch import EVENT, Watcher, datasets
from pvqae.core import config
from pvqae.core.errors import ConfigError, PvqaeError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the demo as its own dataset, and one of a user's in a workspace."""
    own = {"data": {"name": "demo"}, "landing": {"url": "landing/{dataset}"}}
    write(tmp_path, own)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    for name, source in (("parts", "folder"), ("made", "demo")):
        space = tmp_path / ".pvqae" / "runs" / name
        space.mkdir(parents=True)
        write(space, {"data": {"name": name, "source": source}})
        (tmp_path / "data" / "raw" / f"{name}.dvc").write_text("outs: []")
    return tmp_path


def write(folder: Path, values: dict[str, object]) -> None:
    (folder / "params.yaml").write_text(json.dumps(values))


def land(project: Path, name: str, content: str = "image", dataset: str = "parts") -> None:
    file = project / "landing" / dataset / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def watcher(project: Path) -> tuple[Watcher, FakeNotifier, list[str]]:
    kept, said = FakeNotifier(), list[str]()
    return Watcher(project, kept, said.append), kept, said


def test_only_datasets_to_which_images_can_come_are_looked_at(project: Path) -> None:
    assert datasets(project) == ["parts"]
    write(project, {"data": {"name": "demo"}})
    assert datasets(project) == []


def test_it_waits_until_nothing_more_arrives_and_tells_once_per_class(project: Path) -> None:
    watching, kept, _ = watcher(project)
    land(project, "gravel/a.png")
    watching.look()
    land(project, "gravel/b.png")
    land(project, "brick/c.png")
    watching.look()  # still arriving
    assert kept.events == []
    watching.look()
    watching.look()
    resource = "pvqae.dataset.parts"
    assert kept.events == [
        (EVENT, resource, {"class": "brick", "prefix": "brick/", "count": 1}),
        (EVENT, resource, {"class": "gravel", "prefix": "gravel/", "count": 2}),
    ]


def test_what_was_decided_is_not_told_of_again_even_by_a_new_watcher(project: Path) -> None:
    land(project, "gravel/a.png")
    item = next(first_item(project))
    entry = Entry(item.key, item.etag, item.size, "versioned", "", "gravel")
    Ledger(IntakePaths(project, "parts").ledger).append([entry])
    watching, kept, _ = watcher(project)
    for _ in range(3):
        watching.look()
    assert kept.events == []
    land(project, "gravel/a.png", "another photograph of that name")
    for _ in range(3):
        watching.look()
    assert [event[2]["count"] for event in kept.events] == [1]


def first_item(project: Path):  # type: ignore[no-untyped-def]
    params = config.parse({"data": {"name": "parts"}, "landing": {"url": "landing/{dataset}"}})
    area = watch.landing_area(project, params)
    assert area is not None
    return area.objects()


def test_a_landing_area_that_is_away_is_said_once_and_found_again(project: Path) -> None:
    watching, kept, said = watcher(project)
    for _ in range(3):
        watching.look()  # there is no folder yet
    assert len(said) == 1
    land(project, "gravel/a.png")
    for _ in range(2):
        watching.look()
    assert len(kept.events) == 1


def test_an_event_that_could_not_be_sent_is_sent_again(project: Path) -> None:
    class Away(FakeNotifier):
        ill = True

        def emit(self, event: str, resource: str, payload: object) -> None:
            if self.ill:
                raise ConnectionError("the server is away")
            super().emit(event, resource, payload)  # type: ignore[arg-type]

    kept, said = Away(), list[str]()
    watching = Watcher(project, kept, said.append)
    land(project, "gravel/a.png")
    for _ in range(3):
        watching.look()
    assert said.count("parts: the server is away; trying again") == 1
    kept.ill = False
    watching.look()
    assert len(kept.events) == 1


INVALID = {
    "no YAML": "landing: [unclosed",
    "unknown key": "landing: {url: 'landing/{dataset}', pol: 3}",
    "wrong value": "landing: {url: 'landing/{dataset}', poll: often}",
    "a list": "- 1",
    "not UTF-8": "seed: \udcff",
    "no file": None,
}


@pytest.mark.parametrize("kind", sorted(INVALID))
def test_invalid_settings_are_said_once_and_the_last_valid_ones_are_kept(project: Path, kind: str) -> None:
    watching, kept, said = watcher(project)
    watching.look()
    valid, text = (project / "params.yaml").read_text(), INVALID[kind]
    (project / "params.yaml").unlink()
    if text is not None:
        (project / "params.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    land(project, "gravel/a.png")
    before = len(said)
    for _ in range(3):
        watching.look()
    assert len([line for line in said[before:] if "last valid settings" in line]) == 1
    assert str(project / "params.yaml") in said[before]
    assert len(kept.events) == 1
    (project / "params.yaml").write_text(valid)
    land(project, "gravel/b.png")
    for _ in range(3):
        watching.look()
    assert "params.yaml is valid again" in said
    assert kept.events[-1][2]["count"] == 2  # the first again: its retraining may have failed for the params


def test_another_error_in_the_settings_is_said_and_a_repaired_setting_is_taken_up(project: Path) -> None:
    watching, _, said = watcher(project)
    watching.look()
    for text in ("seed: x", "seed: y", "seed: y"):
        (project / "params.yaml").write_text(text)
        watching.look()
    assert len([line for line in said if "last valid settings" in line]) == 2
    write(project, {"landing": {"url": "landing/{dataset}", "poll": 7}})
    watching.look()
    assert watching.settings is not None
    assert watching.settings.landing.poll == 7


def test_settings_that_were_never_valid_are_an_error(project: Path) -> None:
    (project / "params.yaml").write_text("seed: x")
    with pytest.raises(ConfigError, match="seed"):
        watcher(project)[0].look()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("S3"), PvqaeError("MLflow")])
def test_no_fault_of_one_dataset_ends_the_watcher_or_hides_another(
    project: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (project / "data" / "raw" / "ill.dvc").write_text("outs: []")
    (project / ".pvqae" / "runs" / "ill").mkdir()
    write(project / ".pvqae" / "runs" / "ill", {"data": {"name": "ill", "source": "folder"}})
    whole = watch.landing_area

    def shore(root: Path, params: config.Params) -> object:
        if params.data.name == "ill":
            raise error
        return whole(root, params)

    monkeypatch.setattr(watch, "landing_area", shore)
    watching, kept, said = watcher(project)
    land(project, "gravel/a.png")
    for _ in range(3):
        watching.look()
    assert len([line for line in said if line.startswith("ill: ")]) == 1
    assert len(kept.events) == 1


def test_a_dataset_whose_params_can_t_be_read_is_looked_at_all_the_same(project: Path) -> None:
    (project / ".pvqae" / "runs" / "parts" / "params.yaml").write_text("seed: x")
    assert datasets(project) == ["parts"]


def test_a_retraining_that_crashed_is_asked_for_again_but_not_for_ever(project: Path) -> None:
    first, third = Crash("a", "d", "quick-owl", {"dataset": "parts"}, 1), Crash("b", "d", "slow-owl", {}, 3)
    kept, said = FakeCrashes([first, third], ill=True), list[str]()
    watching = Watcher(project, FakeNotifier(), said.append, kept)
    for _ in range(2):
        watching.look()
    assert said.count("retrainings: the server is away; trying again") == 1
    kept.ill = False
    for _ in range(3):
        watching.look()
    assert kept.asked == [first]
    assert "the retraining quick-owl crashed: asked for again, try 2 of 3" in said
    assert len([line for line in said if "slow-owl crashed 3 times" in line]) == 1
