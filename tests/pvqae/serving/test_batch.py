"""Batch scoring with a detector that is a formula: what is kept, what is scored again, what is reported."""

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError
from pvqae.samples import geometry, images
from pvqae.serving import batch
from pvqae.serving.batch_source import Files, Item

CARD = {"threshold": 0.5, "map_threshold": 0.6, "map_scale": [0.0, 1.0]}


@dataclass
class Detector:
    """The score is the mean grey level; an image brighter than `killed_by` ends the run, whichever thread has it."""

    sha256: str = "ab" * 32
    scorer: Any = field(default_factory=lambda: SimpleNamespace(image=config.Image(), at_once=2))
    card: dict[str, Any] = field(default_factory=lambda: dict(CARD))
    config: dict[str, Any] = field(default_factory=lambda: {"model": {"levels": 3}})
    scored: int = 0
    killed_by: float = math.inf

    @property
    def threshold(self) -> float:
        return float(self.card["threshold"])

    @property
    def pixel_threshold(self) -> float | None:
        return self.card.get("pixel", {}).get("threshold")

    def marks(self, scored: Any) -> dict[str, Any] | None:
        limit = self.pixel_threshold
        return None if limit is None else geometry.marks(scored.anomaly_map, limit, scored.anomaly_map.shape)

    def mask(self, scored: Any) -> np.ndarray:
        return scored.anomaly_map > self.pixel_threshold

    def score(self, pixels: images.Floats, sample_id: str = "") -> Any:
        grey = pixels.mean(axis=2)
        if grey.mean() > self.killed_by:
            raise KeyboardInterrupt
        self.scored += 1
        mean = float("nan") if grey.min() > 0.99 else float(grey.mean())
        parts = {"s_prior": mean, "s_recon": 2 * mean, "product": mean**2}
        levels = np.array([[0, 1, 2, -1], [1, 1, 2, -1]])
        shown = (pixels * 255).astype(np.uint8)
        return SimpleNamespace(
            image_score=mean, parts=parts, allocates=True, levels=levels, anomaly_map=grey, picture=shown
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png 0.2, b/c.png 0.8, and files that are no images or broken ones."""
    root = tmp_path / "in"
    images.write(root / "a.png", np.full((20, 30, 3), 0.2, dtype=np.float32))
    images.write(root / "b" / "c.png", np.full((20, 30, 3), 0.8, dtype=np.float32))
    (root / "broken.jpg").write_bytes(b"not an image")
    (root / "notes.txt").write_text("no image, no row")
    return root


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file() and "journal" not in path.name}


def test_rows_say_everything_and_bad_images_why(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = batch.run(Detector(), Files((folder,)), out, "7")  # type: ignore[arg-type]
    assert found == batch.Outcome(images=3, scored=2, defects=1, failed=1)
    assert found.sentence(out).startswith("3 images: 2 scored now, 1 above the threshold, 1 not scored")
    again = batch.run(Detector(), Files((folder,)), out, "7")  # type: ignore[arg-type]
    assert again.sentence(out).startswith("3 images: 0 scored now, 2 known, 1 above the threshold, 1 not scored")
    normal, broken, defect = rows(out)
    assert Path(normal["path"]).name == "a.png"
    assert (normal["decision"], defect["decision"], broken["decision"]) == ("normal", "defect", "")
    assert defect["margin"] == pytest.approx(defect["score"] - 0.5)
    assert (defect["version"], defect["bundle_sha256"]) == ("7", "ab" * 32)
    assert defect["level_shares"] == pytest.approx([1 / 6, 1 / 2, 1 / 3], abs=1e-5)
    assert defect["parts"]["s_recon"] == pytest.approx(2 * defect["score"])
    assert defect["statistics"]["brightness"] == pytest.approx(0.8, abs=0.01)
    assert normal["taken"].startswith("20")
    assert broken["score"] is None
    assert "readable image" in broken["error"]
    table = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert [row["decision"] for row in table] == ["normal", "", "defect"]
    assert float(table[2]["level_1"]) == pytest.approx(0.5)
    assert table[1]["score"] == ""


def test_a_rerun_scores_nothing_and_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    out, detector = tmp_path / "out", Detector()
    batch.run(detector, Files((folder,)), out)  # type: ignore[arg-type]
    before = contents(out)
    assert batch.run(detector, Files((folder,)), out).scored == 0  # type: ignore[arg-type]
    assert contents(out) == before
    assert detector.scored == 2


def test_only_what_is_new_is_scored(folder: Path, tmp_path: Path) -> None:
    out, detector = tmp_path / "out", Detector()
    batch.run(detector, Files((folder,)), out)  # type: ignore[arg-type]
    images.write(folder / "b" / "d.png", np.full((20, 30, 3), 0.3, dtype=np.float32))
    assert batch.run(detector, Files((folder,)), out).scored == 1  # type: ignore[arg-type]
    assert len(rows(out)) == 4
    another = Detector(sha256="cd" * 32)
    assert batch.run(another, Files((folder,)), out).scored == 3  # type: ignore[arg-type]
    assert {row["bundle_sha256"] for row in rows(out)} == {"cd" * 32}


def test_a_killed_run_resumes_to_the_same_files(folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    batch.run(Detector(), Files((folder,)), whole)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        batch.run(Detector(killed_by=0.7), Files((folder,)), killed)  # type: ignore[arg-type]
    assert not (killed / "scores.jsonl").exists()
    detector = Detector()
    batch.run(detector, Files((folder,)), killed)  # type: ignore[arg-type]
    assert detector.scored == 1
    assert contents(killed) == contents(whole)


def test_heatmaps_on_request_also_of_what_was_scored_before(folder: Path, tmp_path: Path) -> None:
    out, detector = tmp_path / "out", Detector()
    batch.run(detector, Files((folder,)), out)  # type: ignore[arg-type]
    assert rows(out)[0]["heatmap"] == ""
    batch.run(detector, Files((folder,)), out, heatmaps=True)  # type: ignore[arg-type]
    normal, broken, defect = rows(out)
    assert broken["heatmap"] == ""
    hot, cold = (images.read(out / row["heatmap"]).mean() for row in (defect, normal))
    assert hot > cold
    assert batch.run(detector, Files((folder,)), out, heatmaps=True).scored == 0  # type: ignore[arg-type]


MARKING = CARD | {"pixel": {"threshold": 0.7}}


def test_what_is_marked_is_in_the_rows_the_table_and_the_masks(folder: Path, tmp_path: Path) -> None:
    picture = np.full((20, 30, 3), 0.2, dtype=np.float32)
    picture[3:7, 10:20] = 0.9
    images.write(folder / "spot.png", picture)
    out, detector = tmp_path / "out", Detector(card=MARKING)
    batch.run(detector, Files((folder,)), out)  # type: ignore[arg-type]
    assert rows(out)[0]["mask"] == ""
    batch.run(detector, Files((folder,)), out, masks=True)  # type: ignore[arg-type]
    normal, broken, spot, whole = rows(out)
    assert [row["pixel_threshold"] for row in rows(out)] == [0.7] * 4
    assert (normal["marked_area"], normal["region_count"], normal["regions"]) == (0, 0, [])
    assert (broken["marked_area"], broken["region_count"], broken["regions"]) == (None, None, None)
    assert (whole["marked_area"], spot["region_count"]) == (1, 1)
    box = {
        "x": 10,
        "y": 3,
        "width": 10,
        "height": 4,
        "area": 40,
        "share": 0.0666667,
        "peak": pytest.approx(0.9, abs=0.01),
    }
    assert spot["regions"] == [box]
    mask = images.read_mask(out / spot["mask"])
    assert mask.shape == (20, 30)
    assert mask[3:7, 10:20].all()
    assert mask.sum() == 40
    assert not images.read(out / normal["mask"]).any()
    assert broken["mask"] == ""
    table = list(csv.DictReader((out / "scores.csv").read_text("utf-8").splitlines()))
    assert [row["region_count"] for row in table] == ["0", "", "1", "1"]
    assert table[2]["mask"] == spot["mask"]
    assert batch.run(detector, Files((folder,)), out, heatmaps=True, masks=True).scored == 3  # type: ignore[arg-type]
    assert batch.run(detector, Files((folder,)), out, heatmaps=True, masks=True).scored == 0  # type: ignore[arg-type]


def test_a_bundle_without_a_pixel_threshold_marks_nothing_and_says_so(folder: Path, tmp_path: Path) -> None:
    batch.run(Detector(), Files((folder,)), tmp_path / "out")  # type: ignore[arg-type]
    marked = ("pixel_threshold", "marked_area", "region_count", "regions")
    assert [[row[key] for key in marked] for row in rows(tmp_path / "out")] == [[None] * 4] * 3
    with pytest.raises(ConfigError, match="no pixel threshold"):
        batch.run(Detector(), Files((folder,)), tmp_path / "out", masks=True)  # type: ignore[arg-type]


def test_a_score_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    images.write(tmp_path / "white.png", np.ones((20, 30, 3), dtype=np.float32))
    found = batch.run(Detector(), Files((tmp_path / "white.png",)), tmp_path / "out")  # type: ignore[arg-type]
    assert (found.failed, found.defects) == (1, 0)
    assert "finite" in rows(tmp_path / "out")[0]["error"]


def test_a_missing_place_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        batch.run(Detector(), Files((tmp_path / "nowhere",)), tmp_path / "out")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["missing", "broken link", "pipe", "a folder that can't be listed"])
def test_one_bad_place_does_not_keep_the_others_from_their_scores(
    folder: Path, tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "aaa.png"
    if bad == "broken link":
        place.symlink_to(tmp_path / "nothing")
    elif bad == "pipe":
        os.mkfifo(place)
    elif bad.startswith("a folder"):
        place.mkdir()
        listing = os.scandir

        def scandir(path: str | int) -> object:
            if path == str(place):
                raise PermissionError(13, "Permission denied", path)
            return listing(path)

        monkeypatch.setattr(os, "scandir", scandir)  # root may list everything
    found = list(batch.rows(Detector(), Files((place, folder))))  # type: ignore[arg-type]
    assert [bool(row["error"]) for row in found] == [True, False, True, False]
    assert found[0]["path"] == place.as_posix()


def test_without_a_folder_rows_come_at_once(folder: Path) -> None:
    found = list(batch.rows(Detector(), Files((folder,))))  # type: ignore[arg-type]
    assert [bool(row["error"]) for row in found] == [False, True, False]


def test_an_image_that_is_there_twice_has_two_rows_and_one_picture(folder: Path, tmp_path: Path) -> None:
    for place in ("1", "2", "3"):
        images.write(folder / place / "same.png", np.full((20, 30, 3), 0.7, dtype=np.float32))
    found = batch.run(Detector(), Files((folder,)), tmp_path / "out", heatmaps=True)  # type: ignore[arg-type]
    same = [row for row in rows(tmp_path / "out") if row["path"].endswith("same.png")]
    assert (found.images, len(same), len({row["heatmap"] for row in same})) == (6, 3, 1)
    assert (tmp_path / "out" / same[0]["heatmap"]).is_file()


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_how_many_are_scored_at_once_changes_nothing(folder: Path, tmp_path: Path, at_once: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        images.write(folder / f"{number:02}.png", rng.random((8, 9, 3), dtype=np.float32))
    found = []
    for name, many in (("alone", 1), ("together", at_once)):
        detector = Detector(scorer=SimpleNamespace(image=config.Image(), at_once=many))
        batch.run(detector, Files((folder,)), tmp_path / name, heatmaps=True)  # type: ignore[arg-type]
        found.append(contents(tmp_path / name))
    assert found[0] == found[1]


@dataclass
class Store:
    """A store that names contents; `fetched` counts."""

    image: bytes
    names: list[str]
    fetched: int = 0

    def items(self) -> list[Item]:
        return [Item(name, f"etag-{name}") for name in self.names]

    def file(self, item: Item, scratch: Path) -> Path:
        if item.path == "lost":
            raise OSError("connection lost")
        self.fetched += 1
        file = scratch / "image.png"
        assert not file.exists()
        assert len(list(scratch.parent.iterdir())) < 6  # those before are gone: disk use does not grow
        file.write_bytes(self.image + item.path.encode())
        return file


def test_known_content_is_not_fetched_again_and_a_lost_object_is_a_row(folder: Path, tmp_path: Path) -> None:
    store, out = Store((folder / "a.png").read_bytes(), ["x", "lost", "y"]), tmp_path / "out"
    assert batch.run(Detector(), store, out).failed == 1  # type: ignore[arg-type]
    assert [row["error"] for row in rows(out)] == ["", "connection lost", ""]
    batch.run(Detector(), store, out)  # type: ignore[arg-type]
    assert store.fetched == 2


MANY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_batch import Detector, Store
from pvqae.serving import batch
image, out = Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])
peaks = []
for count in (200, 3000):
    batch.run(Detector(), Store(image, [f"{i:05}" for i in range(count)]), out / str(count))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_memory_is_flat_over_many_images(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY, str(Path(__file__).parent), str(folder / "a.png"), str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    unit = 1024 if sys.platform != "darwin" else 1
    assert int(done.stdout) * unit < 8 * 2**20
