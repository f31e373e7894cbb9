"""From a bundle to a version: what is refused, what is reused, and what a kill in between leaves to do."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeRegistry
from flows.core import lineage
from flows.versions import card, version_bundles
from flows.versions.registration import Registrar
from flows.workspace.workspace import Workspace
from pvqae.core import config
from pvqae.core.files import digest

MODEL = "pvqae-x-part"
SHARED = {name: "known" for name in lineage.REQUIRED if name not in ("bundle_sha256", "mlflow_run", "parent_version")}


class Fresh:
    """Stands for the fresh process of the parity check."""

    def __init__(self, difference: float) -> None:
        self.answer = json.dumps({"max_abs_difference": difference, "images": 8})
        self.command: list[str] = []
        self.environ: dict[str, str] = {}

    def run(self, command: list[str], cwd: Path, env: dict[str, str], on_line: Callable[[str], None]) -> int:
        self.command, self.environ = command, env
        on_line("a warning")
        on_line(self.answer)
        return 0


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    found = Workspace(tmp_path, tmp_path, config.parse({"data": {"name": "x", "source": "folder"}}))
    bundle = found.layout.bundle("part")
    bundle.mkdir(parents=True)
    (bundle / "SHA256SUMS").write_text("sums")
    (bundle / "config.json").write_text('{"health": {"level_shares": [0.5, 0.5], "codebook_usage": 0.5}}')
    (bundle / "calibration.json").write_text('{"synthetic": {"n": 48, "found": 40, "highest": 9.5}}')
    found.layout.class_report("part").mkdir(parents=True)
    (found.layout.class_report("part") / "metrics.json").write_text('{"image_auroc": 0.9}')
    found.layout.manifest.parent.mkdir()
    found.layout.manifest.write_text("rows")
    # The real one needs a real bundle.
    monkeypatch.setattr(version_bundles, "export", lambda supervisor, space, bundle, out: shutil.copytree(bundle, out))
    return found


def registrar(
    space: Workspace,
    runs: FakeRegistry,
    difference: float = 0.0,
    uncommitted: tuple[str, ...] = (),
    shared: dict[str, str] = SHARED,
) -> Registrar:
    made_from = shared | {"manifest_sha256": digest(space.layout.manifest)}
    return Registrar(runs, Fresh(difference), space, made_from, uncommitted, lambda: 3)  # type: ignore[arg-type]


def started(runs: FakeRegistry) -> str:
    return runs.start("pvqae-x", "part")


def test_a_first_version_is_champion_with_full_lineage_and_an_entry(space: Workspace) -> None:
    runs = FakeRegistry()
    found = registrar(space, runs).register("part", started(runs))
    assert (found.version, found.new, found.alias) == ("1", True, "champion")
    tags = runs.version_tags(MODEL, "1")
    assert lineage.Lineage.missing(tags) == ()
    assert tags["bundle_sha256"] == hashlib.sha256(b"sums").hexdigest()
    assert tags["parent_version"] == "none"
    (entry,) = runs.promotions(MODEL)
    assert (entry.kind, entry.from_version, entry.to_version) == ("initial", "none", "1")


def test_a_later_version_is_challenger_and_names_its_parent(space: Workspace) -> None:
    runs = FakeRegistry()
    registrar(space, runs).register("part", started(runs))
    (space.layout.bundle("part") / "SHA256SUMS").write_text("others")
    assert registrar(space, runs).existing("part") is None
    found = registrar(space, runs).register("part", started(runs))
    assert (found.version, found.alias) == ("2", "challenger")
    assert runs.version_tags(MODEL, "2")["parent_version"] == "1"
    assert runs.alias(MODEL, "champion") == "1"


def test_an_equal_bundle_on_an_equal_manifest_is_the_same_version(space: Workspace) -> None:
    runs = FakeRegistry()
    registrar(space, runs).register("part", started(runs))
    found = registrar(space, runs).existing("part")
    assert found is not None
    assert (found.version, found.new, found.alias) == ("1", False, "champion")
    space.layout.manifest.write_text("other rows")
    assert registrar(space, runs).existing("part") is None


@pytest.mark.parametrize("logged", [False, True])
def test_a_kill_before_the_alias_moved_is_made_good_by_the_next_run(space: Workspace, logged: bool) -> None:
    runs = FakeRegistry()
    registrar(space, runs).register("part", started(runs))
    runs.aliases.clear()
    if not logged:
        runs.log.clear()
    found = registrar(space, runs).existing("part")
    assert found is not None
    assert (found.version, found.alias) == ("1", "champion")
    assert runs.promotions(MODEL)[-1].to_version == "1"


def test_uncommitted_code_is_no_version(space: Workspace) -> None:
    runs = FakeRegistry()
    run = started(runs)
    found = registrar(space, runs, uncommitted=("pvqae/a.py",)).register("part", run)
    assert found.version == ""
    assert "pvqae/a.py" in found.reasons[0]
    assert runs.versions == {}
    assert runs.runs[run].tags["never_promotable"] == "true"


def test_scores_that_change_on_reload_are_no_version(space: Workspace) -> None:
    runs = FakeRegistry()
    assert registrar(space, runs, difference=0.1).register("part", started(runs)).version == ""
    assert runs.versions == {}


def test_incomplete_lineage_is_no_version(space: Workspace) -> None:
    runs = FakeRegistry()
    found = registrar(space, runs, shared=SHARED | {"git_sha": ""}).register("part", started(runs))
    assert found.version == ""
    assert "git_sha" in found.reasons[0]


def test_parity_is_asked_of_the_exported_bundle_with_as_many_threads_as_the_evaluation(space: Workspace) -> None:
    runs, fresh = FakeRegistry(), Fresh(0.0)
    made_from = SHARED | {"manifest_sha256": "m"}
    Registrar(runs, fresh, space, made_from, (), lambda: 3).register("part", started(runs))  # type: ignore[arg-type]
    assert fresh.command[:4] == [sys.executable, "-m", "pvqae.cli.main", "parity"]
    assert Path(fresh.command[4]) != space.layout.bundle("part")
    assert fresh.command[-2:] == ["--threads", "3"]


@pytest.mark.parametrize(
    ("synthetic", "alias"),
    [
        ({"n": 48, "found": 0, "highest": 20024.4}, "challenger"),
        ({"n": 3, "found": 0, "highest": -0.5}, "challenger"),
        ({"n": 48, "found": 1, "highest": 20024.4}, "champion"),
        ({"n": 0, "found": 0, "highest": None}, "champion"),
    ],
)
def test_a_first_version_that_finds_none_of_its_own_defects_waits(
    space: Workspace, synthetic: dict[str, object], alias: str
) -> None:
    (space.layout.bundle("part") / "calibration.json").write_text(json.dumps({"synthetic": synthetic}))
    runs = FakeRegistry()
    found = registrar(space, runs).register("part", started(runs))
    assert (found.alias, runs.alias("pvqae-x-part", "champion") is not None) == (alias, alias == "champion")
    assert ("synthetic defects" in "; ".join(found.reasons)) == (alias == "challenger")


def test_a_version_is_described_by_its_card_and_figures() -> None:
    stored = Path(__file__).parents[2] / "pvqae" / "inference" / "version_0_1" / "bundle" / "calibration.json"
    tags = dict.fromkeys(lineage.REQUIRED, "known")
    text = card.description(json.loads(stored.read_text()), {"image_auroc": 0.98765, "aupro": None}, tags)
    assert "A score above 21.08 is a defect: k-th smallest of n scores of unseen normals" in text
    assert "by 44 unseen normals of 11 parts it is between 0.6% and 12.0%" in text
    assert "On the test split: image AUROC 0.988." in text
    assert "no labelled defects" in card.description(json.loads(stored.read_text()), {}, tags)
