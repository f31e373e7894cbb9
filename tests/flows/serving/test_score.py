import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeLanding, FakeNotifier, FakeRegistry
from flows.serving import score
from pvqae.cli import stream_command
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.files import Sealed
from pvqae.drift.drift import Comparison, _Figure, _Share
from pvqae.drift.drift_report import Report
from pvqae.drift.drift_report import _Verdict as Verdict
from pvqae.inference import bundle as bundles
from pvqae.serving import batch_cli
from pvqae.serving.batch_source import Files
from tests.chaos.conftest import make


@pytest.fixture
def registry() -> FakeRegistry:
    runs = FakeRegistry()
    run = runs.start("e", "r")
    for _ in range(2):
        runs.register("pvqae-parts-a_1", run, "models:/m", {})
    runs.set_alias("pvqae-parts-a_1", "champion", "2")
    return runs


@pytest.mark.parametrize(
    ("name", "version"), [("pvqae-parts-a_1", "2"), ("pvqae-parts-a_1@champion", "2"), ("pvqae-parts-a_1@1", "1")]
)
def test_a_name_means_a_version(registry: FakeRegistry, name: str, version: str) -> None:
    assert score.parse(name, registry) == ("pvqae-parts-a_1", version)


@pytest.mark.parametrize("name", ["parts", "pvqae-parts-a_1@", "pvqae-parts-a_1@challenger", "pvqae-other-x"])
def test_other_names_are_refused(registry: FakeRegistry, name: str) -> None:
    with pytest.raises(ConfigError, match="pvqae-"):
        score.parse(name, registry)


def test_a_bucket_gives_its_images_and_names_their_content(tmp_path: Path) -> None:
    shelf = FakeLanding({"a/1.png": b"one", "a/2.PNG": b"two", "a/notes.txt": b"x", "a/.3.png": b"y"})
    source = score._Bucket(shelf, "s3://bucket/prefix")
    items = list(source.items())
    assert [item.path for item in items] == ["s3://bucket/prefix/a/1.png", "s3://bucket/prefix/a/2.PNG"]
    assert source.file(items[1], tmp_path).read_bytes() == b"two"
    before = items[0].identity
    shelf.content["a/1.png"] = b"three"
    assert next(iter(source.items())).identity != before


def test_sources_and_places(tmp_path: Path) -> None:
    assert score._source_of(str(tmp_path)) == Files((tmp_path,))
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        score._source_of("ftp://x/y")
    one, other = (score._place(tmp_path, "pvqae-parts-a", where) for where in ("s3://b/x/today", "s3://b/y/today"))
    assert one != other
    assert one.parent == tmp_path / "scores" / "pvqae-parts-a"
    assert one.name.startswith("today-")


def test_a_bucket_is_streamed_by_a_registered_version(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that does not arrive at once is fetched again, one that never does is a row; a restart skips both."""
    made = make(tmp_path / "tiny", tmp_path / "normals")
    data = {f"{name}.png": (tmp_path / "normals" / f"{name}.png").read_bytes() for name in range(3)}
    shelf = FakeLanding({**data, "notes.txt": b"x"}, failing={"1.png"})
    monkeypatch.setattr(score, "open_registry", lambda *_: (registry, None))
    monkeypatch.setattr(score, "bundle_of", lambda *_: bundles.read(made))
    monkeypatch.setattr(score.landing, "open_landing", lambda url: shelf)
    monkeypatch.setattr(batch_cli, "prepare", lambda: None)
    (tmp_path / "params.yaml").write_text("data: {name: parts, source: folder}\n", "utf-8")
    options = stream_command.Options(
        out=tmp_path / "out", folder=None, keep=1, webhook="", mqtt="", page=None, page_host="127.0.0.1",
        token_file=None, every=1, rate=0.0, drop="", queue=8, frames=3, poll=0.05, patience=30.0, ffmpeg=(),
    )  # fmt: skip
    assert score.stream(tmp_path, "pvqae-parts-a_1@champion", "s3://bucket/line/", options) == 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text("utf-8").splitlines()]
    assert [row["path"] for row in rows] == [f"s3://bucket/line/{name}.png" for name in (0, 2, 1)]
    assert [row["version"] for row in rows] == ["2"] * 3
    assert "failed on purpose" in rows[2]["error"]
    assert shelf.fetched.count("1.png") == 3
    shelf.content["3.png"] = shelf.content["0.png"]
    assert score.stream(tmp_path, "pvqae-parts-a_1@champion", "s3://bucket/line", replace(options, frames=1)) == 0
    assert len((tmp_path / "out" / "scores.jsonl").read_text("utf-8").splitlines()) == 4


def report(verdict: Verdict, since: str = "2026-01-02") -> Report:
    figure = _Figure("brightness", 0.6, 0.3, 0.001, 1.0, 0.3, 0.6, 0.5, 2.0)
    found = Comparison(40, 60, 20, 1.0, (figure,), _Share(1, 40, (0.0, 0.1), 0.05, -0.02, 0.1, 1.0))
    return Report(verdict, f"{verdict}.", since if verdict == "drift" else "", found, ())


@pytest.fixture
def bundle(tmp_path: Path) -> Sealed:
    return Sealed(tmp_path / "bundle", "", {"config.json": json.dumps({"dataset": "parts", "category": "a"}).encode()})


def judge(bundle: Sealed, kept: FakeNotifier, found: Report, monkeypatch: pytest.MonkeyPatch) -> score.Judged:
    monkeypatch.setattr(batch_cli, "judge", lambda *_: found)
    return score._judge(bundle, bundle.folder.parent, config.Drift(), "pvqae-parts-a", "3", kept)


def test_drift_sends_one_event_with_figures(bundle: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FakeNotifier()
    assert judge(bundle, kept, report("drift"), monkeypatch).exit_code == 3
    ((event, resource, payload),) = kept.events
    assert (event, resource) == ("pvqae.drift.detected", "pvqae.dataset.parts")
    assert payload["class"] == "a"
    assert payload["version"] == "3"
    assert payload["drifted"] == ["brightness"]
    assert payload["ks"]["brightness"] == 0.6
    json.dumps(payload)


@pytest.mark.parametrize(("verdict", "code"), [("none", 0), ("insufficient", 4)])
def test_no_drift_sends_nothing(bundle: Sealed, verdict: Verdict, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FakeNotifier()
    assert judge(bundle, kept, report(verdict), monkeypatch).exit_code == code
    assert kept.events == []


def test_since_is_that_of_the_unbroken_drift(bundle: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [
        ("drift", "2026-01-01"),
        ("none", ""),
        ("drift", "2026-01-03"),
        ("insufficient", ""),
        ("drift", "2026-01-05"),
    ]
    since = [judge(bundle, FakeNotifier(), report(v, day), monkeypatch).since for v, day in days]  # type: ignore[arg-type]
    assert since == ["2026-01-01", "", "2026-01-03", "", "2026-01-03"]
    assert len((bundle.folder.parent / "drift.jsonl").read_text("utf-8").splitlines()) == 5
