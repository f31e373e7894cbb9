"""The service that follows an alias: what a client sees while versions come, go and are damaged."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from flows.adapters.fakes import FakeRegistry
from flows.adapters.registry import RegistryError
from flows.serving.serve import _Follower, _kept
from pvqae.core import config
from pvqae.inference import bundle as bundles
from pvqae.serving import app
from pvqae.serving.middleware import Metrics
from pvqae.serving.slot import ModelSlot, Shadow
from tests.pvqae.conftest import picture, scorer  # noqa: F401  # fixtures
from tests.pvqae.serving.conftest import bundle, newer, photos, running  # noqa: F401  # fixtures
from tests.waiting import until

MODEL = "pvqae-tiny-sheet"


@dataclass
class Registry(FakeRegistry):
    """The twin, and what it does when it is down."""

    down: bool = False
    downloads: list[str] = field(default_factory=list)

    def alias(self, name: str, alias: str) -> str | None:
        if self.down:
            raise RegistryError("nothing answers")
        return super().alias(name, alias)

    def download(self, name: str, version: str, out: Path) -> Path:
        self.downloads.append(version)
        if self.down:
            raise RegistryError("nothing answers")
        return super().download(name, version, out)


@pytest.fixture
def registry(bundle: Path, newer: Path) -> Registry:  # noqa: F811
    """Versions 1 and 2, and 3 whose files are not those of its lineage; 1 is champion."""
    runs = Registry()
    run = runs.start("e", "r")
    for number, folder in enumerate((bundle, newer, bundle)):
        model = runs.log_model(run, folder) + str(number)
        runs.bundles[model] = {file.name: file.read_bytes() for file in folder.iterdir()}
        tags = {"bundle_sha256": bundles.sha256_of(folder), "git_sha": f"{number}" * 40, "gate_verdict": "not shown"}
        runs.register(MODEL, run, model, tags)
    runs.bundles[model]["weights.safetensors"] += b"x"
    runs.set_alias(MODEL, "champion", "1")
    return runs


@dataclass(frozen=True)
class Service:
    url: str
    slot: ModelSlot
    metrics: Metrics
    follower: _Follower

    def loads(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("pvqae_reloads_total", {"outcome": outcome})

    def shadowed(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("pvqae_shadow_images_total", {"outcome": outcome})


@contextmanager
def following(registry: Registry, root: Path, name: str = f"{MODEL}@champion") -> Iterator[Service]:
    metrics = Metrics()
    slot = ModelSlot(metrics)
    with running(app.make(slot, config.Service(rate=0, queue=64), metrics)) as url:
        yield Service(url, slot, metrics, _Follower(root, registry, name, slot, 0.02))


def test_a_moved_alias_is_followed_under_load_without_a_dropped_request(
    registry: Registry, photos: list[bytes], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    stop, enough = threading.Event(), threading.Event()
    found: list[tuple[int, str, float]] = []

    def client(url: str) -> None:
        with requests.Session() as session:
            while not enough.is_set():
                answer = session.post(f"{url}/v1/score", files={"file": photos[1]}, timeout=30)
                row = answer.json()
                found.append((answer.status_code, row.get("version", ""), row.get("threshold", 0)))

    with following(registry, tmp_path) as service:
        service.follower.look()
        threads = [threading.Thread(target=client, args=(service.url,)) for _ in range(4)]
        threads.append(threading.Thread(target=service.follower.run, args=(stop,)))
        for thread in threads:
            thread.start()
        for loads, version in enumerate(("1", "2", "1", "2"), 1):
            registry.set_alias(MODEL, "champion", version)
            # Counted, not read off the last answer: that may be a slow client's, of the version before.
            until(lambda loads=loads: service.loads("loaded") == loads)  # type: ignore[misc]
            answered = len(found)
            until(lambda answered=answered: len(found) >= answered + 2 * 4)  # type: ignore[misc]
        enough.set()
        stop.set()
        for thread in threads:
            thread.join()
        assert service.loads("loaded") == 4
    assert {status for status, _, _ in found} == {200}
    assert {(version, threshold) for _, version, threshold in found} == {("1", 100.0), ("2", 5000.0)}
    assert len(found) > 10


def test_the_card_tells_the_lineage(registry: Registry, tmp_path: Path) -> None:
    with following(registry, tmp_path) as service:
        assert requests.get(f"{service.url}/ready", timeout=30).status_code == 503
        service.follower.look()
        card = requests.get(f"{service.url}/v1/model", timeout=30).json()
    assert card["version"] == "1"
    assert card["lineage"]["git_sha"] == "0" * 40
    assert "gate_verdict" not in card["lineage"]


def test_a_damaged_version_keeps_the_old_one_and_is_shown(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with following(registry, tmp_path) as service:
        service.follower.look()
        registry.set_alias(MODEL, "champion", "3")
        for _ in range(3):
            service.follower.look()
        ready = requests.get(f"{service.url}/ready", timeout=30)
        card = requests.get(f"{service.url}/v1/model", timeout=30).json()
        assert (ready.status_code, ready.json()["version"]) == (200, "1")
        assert ready.json()["rejected"] == {"version": "3", "error": "IntegrityError"}
        assert "weights.safetensors" in card["rejected"]["error"]
        assert service.loads("rejected") == 1
        assert registry.downloads == ["1", "3"]
        assert caplog.text.count("version 3 does not answer") == 1
        registry.set_alias(MODEL, "champion", "2")
        service.follower.look()
        assert requests.get(f"{service.url}/ready", timeout=30).json()["rejected"] is None
    assert service.slot.current is not None
    assert service.slot.current.version == "2"


def test_while_the_registry_is_down_the_service_goes_on_and_then_catches_up(registry: Registry, tmp_path: Path) -> None:
    with following(registry, tmp_path) as service:
        service.follower.look()
        registry.set_alias(MODEL, "champion", "2")
        registry.down = True
        for _ in range(2):
            service.follower.look()
        ready = requests.get(f"{service.url}/ready", timeout=30).json()
        assert (ready["version"], ready["rejected"]["error"]) == ("1", "RegistryError")
        assert service.loads("unreachable") == 2
        registry.down = False
        service.follower.look()
        assert requests.get(f"{service.url}/ready", timeout=30).json()["version"] == "2"


def test_an_alias_that_is_gone_keeps_the_old_version(registry: Registry, tmp_path: Path) -> None:
    with following(registry, tmp_path) as service:
        service.follower.look()
        registry.aliases.clear()
        service.follower.look()
        assert service.slot.current is not None
        registry.set_alias(MODEL, "champion", "1")
        service.follower.look()
        assert service.slot.failure is None


def test_a_model_in_shadow_scores_what_was_answered_and_delays_nobody(
    registry: Registry,
    tmp_path: Path,
    photos: list[bytes],  # noqa: F811
) -> None:
    file = tmp_path / ".pvqae" / "shadow" / f"{MODEL}.jsonl"
    with following(registry, tmp_path) as service:
        other = _Follower(tmp_path, registry, f"{MODEL}@2", ModelSlot(Metrics()), 0.02)
        service.follower.beside = other
        service.slot.shadow = Shadow(other.slot, _kept(tmp_path, f"{MODEL}@2"))
        service.follower.look()
        image = {"file": ("part.png", photos[0])}
        answers = [requests.post(f"{service.url}/v1/score", files=image, timeout=60).json()]
        until(lambda: service.shadowed("skipped") == 1)  # it was not loaded yet
        other.look()
        answers.append(requests.post(f"{service.url}/v1/score", files=image, timeout=60).json())
        until(lambda: service.shadowed("scored") == 1)
        assert {answer["version"] for answer in answers} == {"1"}
        assert "shadow" not in answers[1]
        [kept] = [json.loads(line) for line in file.read_text().splitlines()]
        assert (kept["answered"]["version"], kept["shadow"]["version"]) == ("1", "2")
        assert kept["answered"]["score"] == answers[1]["score"]
        assert kept["shadow"]["decision"] in ("normal", "defect")
        assert (kept["path"], kept["sha256"]) == ("part.png", answers[1]["sha256"])
        file.unlink()
        file.mkdir()  # it can't be written any more
        assert requests.post(f"{service.url}/v1/score", files=image, timeout=60).status_code == 200
        until(lambda: service.shadowed("failed") == 1)
