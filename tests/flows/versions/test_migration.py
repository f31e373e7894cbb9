"""Versions of an older bundle format become versions of today's, and nothing else about a model changes."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeRegistry
from flows.core import lineage
from flows.core.lineage import Owner
from flows.versions import migration, promotions, version_bundles
from pvqae.inference import bundle

MODEL = "pvqae-tiles-part"
OLD = Path(__file__).parents[2] / "pvqae" / "inference" / "format_2" / "bundle"


def of_format(folder: Path, number: int) -> Path:
    """The stored bundle, sealed with another number of its format."""
    shutil.copytree(OLD, folder)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"format": number}))
    bundle.seal(folder)
    return folder


def add(registry: FakeRegistry, folder: Path, alias: str) -> str:
    run = registry.start("pvqae-tiles", "part")
    sha256 = hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    tags = dict.fromkeys(lineage.REQUIRED, "known") | {"bundle_sha256": sha256, "mlflow_run": run}
    version = registry.register(MODEL, run, registry.log_model(run, folder), tags, Owner("tiles", "part"))
    promotions.move(registry, MODEL, alias, version, kind="initial", reasons=("first",))
    return version


def test_a_champion_of_format_2_is_written_again_and_stays_what_it_was(twin: FakeRegistry, tmp_path: Path) -> None:
    add(twin, OLD, "champion")
    (looked,) = migration.run(twin, tmp_path, dry_run=True)
    assert (looked.to, len(twin.versions[MODEL])) == ("", 1)
    (done,) = migration.run(twin, tmp_path)
    assert str(done).startswith(f"{MODEL}@champion version 1: is version 2 now: format 2 to 7, scores of 3 pictures")
    assert promotions.held(twin, MODEL) == "2"
    tags = twin.version_tags(MODEL, "2")
    assert not lineage.Lineage.missing(tags)
    assert tags["mlflow_run"] == twin.version_tags(MODEL, "1")["mlflow_run"]
    assert (tags["migrated_from"], tags[migration.ORIGINAL]) == ("1", twin.version_tags(MODEL, "1")["bundle_sha256"])
    assert "is a defect" in twin.texts[MODEL, "2"]
    assert "Version 1 in today's format" in twin.texts[MODEL, "2"]
    version_bundles.check_version(twin, MODEL, "2")
    assert promotions.champions(twin.promotions(MODEL)) == ["2"]  # a rollback goes past it
    (again,) = migration.run(twin, tmp_path)
    assert again.text == "format 7, nothing to do"
    assert len(twin.versions[MODEL]) == 2


@pytest.mark.parametrize(("number", "said"), [(1, "read no more; train the class again"), (8, "install the version")])
def test_what_cannot_be_migrated_is_said_and_stays(twin: FakeRegistry, tmp_path: Path, number: int, said: str) -> None:
    add(twin, of_format(tmp_path / "bundle", number), "champion")
    (found,) = migration.run(twin, tmp_path)
    assert found.failed
    assert f"found {number}" in found.text
    assert said in found.text
    assert promotions.held(twin, MODEL) == "1"


def test_a_rollback_passes_over_what_cannot_be_loaded(twin: FakeRegistry, tmp_path: Path) -> None:
    for folder in (OLD, of_format(tmp_path / "newer", 8), OLD):
        add(twin, folder, "champion")
    entry = promotions.rollback(twin, tmp_path, "tiles", MODEL, "scratches", loads=version_bundles.check_version)
    assert (entry.to_version, entry.reasons[0]) == ("1", "scratches")
    assert entry.reasons[1].startswith("passed over version 2, which can't be loaded")
    assert promotions.champions(twin.promotions(MODEL)) == ["1"]


def test_a_rollback_to_nothing_that_loads_moves_nothing(twin: FakeRegistry, tmp_path: Path) -> None:
    for folder in (of_format(tmp_path / "newer", 8), OLD):
        add(twin, folder, "champion")
    with pytest.raises(promotions.PromotionError, match="champion stays, no earlier one can be loaded") as error:
        promotions.rollback(twin, tmp_path, "tiles", MODEL, "scratches", loads=version_bundles.check_version)
    assert "found 8" in str(error.value)
    assert promotions.held(twin, MODEL) == "2"
