"""What the gate reads and measures: the frozen images as they are listed, both sides on the same pixels."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.gate import measure, promote
from flows.gate.measure import Pair
from flows.versions import version_bundles
from flows.workspace.workspace import Workspace
from pvqae.core import config, files, runtime
from pvqae.core.errors import DataError, IntegrityError
from pvqae.core.files import digest
from pvqae.inference import bundle
from pvqae.samples import images, manifest

CARD = {"threshold": 0.5, "interval_95": [0.01, 0.2], "target_rate": 0.05}
HEALTH = {"level_shares": [0.4, 0.6], "codebook_usage": 0.5}


@dataclass(frozen=True)
class Brightness:
    """Stands for a loaded bundle: the score is the image's mean, times a factor."""

    factor: float

    @property
    def scorer(self) -> "Brightness":
        return self

    @property
    def threshold(self) -> float:
        return 0.5

    card, image = CARD, config.Image()
    config: Any = SimpleNamespace

    def one(self, pixels: np.ndarray, sample_id: str = "") -> SimpleNamespace:
        grey = pixels.mean(axis=2)
        return SimpleNamespace(image_score=float(grey.mean()) * self.factor, anomaly_map=grey * np.float32(self.factor))


def row(data: Path, number: int, label: str, value: float, **changed: object) -> dict[str, object]:
    path = f"raw/x/part/{label}/{number}.png"
    images.write(data / path, np.full((8, 8, 3), value, dtype=np.float32))
    return {
        **{"sample_id": f"part/{label}/{number}", "path": path, "sha256": files.digest(data / path)},
        **{"category": "part", "group_id": f"g{number}", "split": "gate", "label": label, "mask_path": ""},
        **{"kind": "good" if label == "normal" else "dent", "width": 8, "height": 8, "channels": 3, "bit_depth": 8},
        **{"source": "folder", "captured_at": "", **changed},
    }


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    params = config.parse({"data": {"name": "x", "source": "folder"}})
    found = Workspace(tmp_path, tmp_path, params)
    rows = [row(found.layout.data, number, "normal", 0.2 + number / 100) for number in range(12)]
    rows += [row(found.layout.data, number, "defect", 0.3 + number / 100) for number in range(12)]
    frame = pd.DataFrame(rows, columns=list(manifest.COLUMNS))
    manifest.write(frame, found.layout.class_rows("part", "gate"))
    manifest.write(pd.concat([frame, frame.head(1).assign(sample_id="other", split="train")]), found.layout.manifest)
    return found


def test_frozen_images_are_the_listed_ones(space: Workspace) -> None:
    rows = measure._frozen_rows(space, "part")
    assert len(rows) == 24
    assert measure._list_sha256(rows) != measure._list_sha256(rows.head(23))
    file = space.layout.data / rows["path"].iloc[3]
    file.write_bytes(b"another image")
    with pytest.raises(IntegrityError, match=f"{file.name}: expected sha256"):
        measure._frozen_rows(space, "part")
    file.unlink()
    with pytest.raises(IntegrityError, match="no file"):
        measure._frozen_rows(space, "part")


def test_a_list_that_is_not_the_manifests_is_refused(space: Workspace) -> None:
    file = space.layout.class_rows("part", "gate")
    manifest.write(manifest.read(file).head(20), file)
    with pytest.raises(IntegrityError, match="are not the gate rows of"):
        measure._frozen_rows(space, "part")


def test_the_workspace_is_the_one_with_the_versions_manifest(space: Workspace) -> None:
    known = digest(space.layout.manifest)
    assert promote._workspace_of(space.root, space.params, "x", known) == space
    other = space.params.model_copy(update={"data": config.Data(name="y")})
    with pytest.raises(DataError, match="no workspace has it"):
        promote._workspace_of(space.root, other, "x", known)
    with pytest.raises(DataError, match="no workspace has it"):
        promote._workspace_of(space.root, space.params, "x", "0" * 64)


def test_both_sides_are_measured_on_the_same_images(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {"challenger": Brightness(2.0, {"health": HEALTH}), "champion": Brightness(-1.0, {"health": HEALTH})}
    folders = {}
    for name in sides:
        folders[name] = space.root / name
        folders[name].mkdir()
        (folders[name] / "weights.safetensors").write_bytes(b"w" * (10 if name == "champion" else 20))
    asked: list[pd.DataFrame] = []

    def compared(supervisor: object, space: Workspace, folder: Path, table: Path, threads: int) -> float:
        asked.append(pd.read_csv(table))
        return 0.0

    monkeypatch.setattr(bundle, "load", lambda folder: sides[folder.name])
    monkeypatch.setattr(runtime.Plan, "apply", lambda plan: None)
    monkeypatch.setattr(version_bundles, "compare_scores", compared)
    pair = Pair(folders["challenger"], folders["champion"], {}, ("a flaw",))
    limits = config.Gate(draws=100, min_kind=1)
    found = measure.measure(space, "part", pair, limits, config.Compute(device="cpu"), None)  # type: ignore[arg-type]
    seen = found.measured
    assert (seen.groups, seen.normals, seen.defects) == (12, 12, 12)
    assert seen.auroc is not None
    assert seen.auroc.challenger == pytest.approx(1 - seen.auroc.champion)
    assert seen.auroc.challenger == seen.own_auroc
    assert set(seen.kinds) == {"dent"}
    assert seen.alarms is not None
    assert seen.alarms.rate == pytest.approx(7 / 12)  # 0.25 is 64 / 255 in eight bits
    assert (seen.promised, seen.target, seen.parity, seen.size_bytes) == (0.2, 0.05, 0.0, (10, 20))
    assert seen.flaws == ("a flaw",)
    assert found.list_sha256 == measure._list_sha256(measure._frozen_rows(space, "part"))
    assert asked[0]["image_score"].to_list() == pytest.approx(found.scores["challenger"].to_list())

    first = measure.measure(space, "part", Pair(folders["challenger"], None, {}, ()), limits, config.Compute(), None)  # type: ignore[arg-type]
    assert first.measured.first
    assert first.measured.auroc is None
    assert first.measured.own_auroc == seen.own_auroc


def test_maps_are_compared_where_defects_have_masks(space: Workspace) -> None:
    """The brighter half of a defect is its mask; a defect without a mask counts neither as one nor as normal."""
    rows = measure._frozen_rows(space, "part")
    sides = {"challenger": Brightness(2.0, {}), "champion": Brightness(-1.0, {})}
    _, _, without = measure._score(sides, rows, space.layout.data)  # type: ignore[arg-type]
    limits = config.Gate(draws=100)
    assert measure._overlap(without, list(rows["group_id"]), limits) == {"aupro": None, "own_aupro": None}
    half = np.zeros((8, 8), dtype=np.bool_)
    half[:, 4:] = True
    for index in rows.index[rows["label"] == "defect"][:6]:
        picture = np.where(half[..., None], 0.9, 0.3).repeat(3, axis=2).astype(np.float32)
        images.write(space.layout.data / rows.loc[index, "path"], picture)
        images.write(space.layout.data / f"masks/{index}.png", half)
        rows.loc[index, "mask_path"] = f"masks/{index}.png"
    table, _, maps = measure._score(sides, rows, space.layout.data)  # type: ignore[arg-type]
    assert [one is not None for one in maps["champion"]] == [
        label == "normal" or path != "" for label, path in zip(rows["label"], rows["mask_path"], strict=True)
    ]
    found = measure._overlap(maps, list(table["group_id"]), limits)
    assert found["aupro"].defects == 6
    assert found["own_aupro"] == found["aupro"].challenger == 1.0
    assert found["aupro"].champion < 0.2
    alone = measure._overlap({"challenger": maps["challenger"]}, list(table["group_id"]), limits)
    assert alone == {"aupro": None, "own_aupro": 1.0}


def test_the_newest_normals_are_those_that_arrived_then_those_last_taken(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [
            ("raw/x/arrived/part/good/a.png", "", "normal"),
            ("raw/x/part/good/b.png", "2026-01-02T00:00:00", "normal"),
            ("raw/x/part/good/c.png", "2026-01-03T00:00:00", "normal"),
            ("raw/x/part/dent/d.png", "2026-01-04T00:00:00", "defect"),
        ],
        columns=["path", "captured_at", "label"],
    ).assign(sample_id=list("abcd"))
    assert list(measure._newest(table, 2)["sample_id"]) == ["a", "c"]
    assert list(measure._newest(table, 9)["sample_id"]) == ["a", "c", "b"]
