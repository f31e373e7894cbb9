"""The landing watcher: tells of images once they have stopped arriving, and only once."""

import json
from pathlib import Path

import pytest

from flows.adapters.notify import Kept
from flows.arrivals_ledger import Entry, Ledger
from flows.arrivals_places import Places
from flows.known import datasets
from flows.watch import EVENT, Watcher
from pvqae import config


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


def watcher(project: Path) -> tuple[Watcher, Kept, list[str]]:
    kept, said = Kept(), list[str]()
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
    Ledger(Places(project, "parts").ledger).append([entry])
    watching, kept, _ = watcher(project)
    for _ in range(3):
        watching.look()
    assert kept.events == []
    land(project, "gravel/a.png", "another photograph of that name")
    for _ in range(3):
        watching.look()
    assert [event[2]["count"] for event in kept.events] == [1]


def first_item(project: Path):  # type: ignore[no-untyped-def]
    from flows import known

    params = config.parse({"data": {"name": "parts"}, "landing": {"url": "landing/{dataset}"}})
    area = known.shore(project, params)
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
    class Away(Kept):
        ill = True

        def emit(self, event: str, resource: str, payload: object) -> None:
            if self.ill:
                raise ConnectionError("the server is away")
            super().emit(event, resource, payload)  # type: ignore[arg-type]

    kept = Away()
    watching = Watcher(project, kept, print)
    land(project, "gravel/a.png")
    watching.look()
    with pytest.raises(ConnectionError):
        watching.look()
    kept.ill = False
    watching.look()
    assert len(kept.events) == 1
