"""What of a rebuilt version is compared, and what a difference comes to; the rebuilding itself is end to end."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from flows.adapters.fakes import FakeRegistry
from flows.core import environment
from flows.versions import verify
from flows.versions.verify import Verification
from pvqae.core.config import Gate
from pvqae.core.files import SUMS, digest
from pvqae.core.layout import Layout
from pvqae.inference import bundle
from pvqae.samples import manifest

MODEL = "pvqae-x-part"


def lock(**hashes: str) -> str:
    outs = "".join(f"    - path: {name}\n      md5: {value}\n" for name, value in hashes.items())
    return f"stages:\n  train:\n    outs:\n{outs}"


@pytest.fixture
def clone(tmp_path: Path) -> Layout:
    """What a rebuild leaves: manifest, rows, a bundle and dvc.lock."""
    layout = Layout(tmp_path / "clone", "x")
    rows = pd.DataFrame([dict.fromkeys(manifest.COLUMNS, "1") | {"sample_id": f"{n:02}"} for n in range(20)])
    rows["label"] = ["normal"] * 10 + ["defect"] * 10
    rows["path"] = rows["sample_id"]
    manifest.write(rows.head(0), layout.class_rows("part", "test"))
    manifest.write(rows, layout.class_rows("part", "gate"))
    manifest.write(rows, layout.manifest)
    layout.bundle("part").mkdir(parents=True)
    (layout.bundle("part") / "SHA256SUMS").write_text("sums")
    (layout.root / "dvc.lock").write_text(lock(network="n", timing="t2"))
    return layout


def compare(clone: Layout, **tags: str) -> Verification:
    runs = FakeRegistry()
    known = {
        "bundle_sha256": digest(clone.bundle("part") / SUMS),
        "manifest_sha256": digest(clone.manifest),
        "environment": environment.fingerprint(),
    }
    version = runs.register(MODEL, "run", "models:/run", known | tags)
    outputs = {"network": "n", "timing": "t1"}
    return verify._compare(runs, MODEL, version, clone.root, "x", "part", clone.root / "registered", outputs, Gate())


def test_an_equal_bundle_is_reproduced_whatever_the_timings(clone: Layout) -> None:
    found = compare(clone)
    assert (found.reproduced, found.accepted) == (True, True)
    assert {row.what: row.same for row in found.rows} == {
        **{"environment": True, "network": True, "timing": None, "manifest": True, "bundle": True},
    }
    assert "has the registered hash" in found.sentence()


@pytest.mark.parametrize(("away", "accepted"), [(0.1, True), (3.0, False)])
def test_another_bundle_is_judged_by_its_scores(
    clone: Layout, monkeypatch: pytest.MonkeyPatch, away: float, accepted: bool
) -> None:
    """Normals score 0 .. 9, with a deviation of 2.87; 0.1 is within a tenth of that."""

    def load(folder: Path) -> SimpleNamespace:
        added = 0 if folder.name == "registered" else away
        scored = [SimpleNamespace(image_score=number + added) for number in range(20)]
        return SimpleNamespace(score_many=lambda pairs, root: scored)

    monkeypatch.setattr(bundle, "load", load)
    found = compare(clone, bundle_sha256="another", environment="another")
    assert (found.reproduced, found.accepted) == (False, accepted)
    states = {row.what: row.same for row in found.rows}
    assert states["bundle"] is False
    assert states["environment"] is None
    assert states["mean score difference"] is accepted
    assert states["image AUROC"] is True
    assert ("NOT within" in found.sentence()) is not accepted


def test_a_version_of_another_manifest_is_not_reproduced(clone: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_score_rows", lambda *_: [])
    found = compare(clone, manifest_sha256="another")
    assert not found.reproduced
    assert not found.accepted
