import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.files import Sealed, digest
from pvqae.core.layout import Layout
from pvqae.drift import profile
from pvqae.export import parity
from pvqae.inference import bundle, formats
from pvqae.inference.scoring import Scored
from pvqae.model import efficientnet
from pvqae.samples import images, manifest
from pvqae.serving import batch, batch_source

FRESH = """
import json, sys, torch
from pathlib import Path
from pvqae.inference import bundle
torch.set_num_threads(1)
scored = bundle.load(sys.argv[1]).score_many([(p, p) for p in sys.argv[2:]])
print(json.dumps([[s.image_score, s.parts, float(s.anomaly_map.sum()), s.levels.tolist()] for s in scored]))
"""


def facts(scored: Scored) -> list[object]:
    return [scored.image_score, scored.parts, float(scored.anomaly_map.sum()), scored.levels.tolist()]


def in_a_fresh_process(folder: Path, files: list[Path], **environment: str) -> list[object]:
    command = [sys.executable, "-c", FRESH, str(folder), *map(str, files)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.fixture
def copied(workspace: Layout, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workspace.bundle("cloth"), tmp_path / "bundle"))


@pytest.fixture
def files(workspace: Layout) -> list[Path]:
    """A normal and a dented test image of each shape."""
    rows = pd.concat([manifest.read(workspace.class_rows(name, "test")) for name in ("cloth", "plate")])
    return [workspace.data / path for path in rows.groupby(["category", "label"])["path"].first()]


def test_a_fresh_process_gives_identical_scores(copied: Path, files: list[Path]) -> None:
    torch.set_num_threads(1)
    here = [facts(s) for s in bundle.load(copied).score_many((str(f), f) for f in files)]
    assert in_a_fresh_process(copied, files) == here


def test_what_was_evaluated_is_what_a_reload_scores(workspace: Layout) -> None:
    table = workspace.class_report("plate") / "images.csv"
    found = parity.compare(workspace.bundle("plate"), table, workspace.data, rows=4)
    assert found["images"] == 4
    assert found["max_abs_difference"] < 1e-6


def test_parity_notices_another_bundle_and_no_images(workspace: Layout, tmp_path: Path) -> None:
    table = workspace.class_report("plate") / "images.csv"
    found = parity.compare(workspace.bundle("cloth"), table, workspace.data, rows=4)
    assert found["max_abs_difference"] > 1e-3
    pd.read_csv(table).head(0).to_csv(tmp_path / "none.csv")
    assert parity.compare(workspace.bundle("plate"), tmp_path / "none.csv", workspace.data, 4)["images"] == 0
    assert parity.compare(workspace.bundle("plate"), tmp_path / "none.csv", workspace.data, 4)[
        "max_abs_difference"
    ] == float("inf")


def test_saving_a_loaded_bundle_again_gives_the_same_bytes(copied: Path, tmp_path: Path) -> None:
    detector = bundle.load(copied)
    params = config.Params(
        data=config.Data(name=detector.config["dataset"]),
        image=detector.scorer.image,
        model=config.Model(**detector.config["model"]),
        prior=config.Prior(width=detector.config["prior_width"]),
    )
    (tmp_path / "again.part").mkdir()
    (tmp_path / "again.part" / "left over by a kill").touch()
    facts = (detector.scorer, params, "cloth", detector.config["health"], detector.card)
    facts = (*facts, json.loads((copied / "profile.json").read_text()))
    assert bundle.save(tmp_path / "again", *facts) == detector.sha256 == bundle.sha256_of(copied)
    assert {p.name: digest(p) for p in (tmp_path / "again").iterdir()} == {p.name: digest(p) for p in copied.iterdir()}
    other = bundle.save(tmp_path / "again", *facts[:-1], detector.card | {"threshold": 0.0})
    assert other != detector.sha256


def with_bits(copied: Path, bits: int | None) -> bundle.Detector:
    """The bundle with `image.bits`; None as it was before there was such a setting."""
    facts = json.loads((copied / "config.json").read_text())
    facts["image"] = {name: value for name, value in facts["image"].items() if name != "bits"}
    facts["image"] |= {} if bits is None else {"bits": bits}
    (copied / "config.json").write_text(json.dumps(facts))
    bundle.seal(copied)
    return bundle.load(copied)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_bundle_reads_with_the_bits_that_it_was_trained_with(copied: Path, tmp_path: Path, bits: int) -> None:
    picture = np.random.default_rng(0).integers(0, 2**bits, (64, 64))
    Image.fromarray(picture.astype(np.uint16)).save(tmp_path / "few.png")
    full = picture / (2**bits - 1)
    detector = with_bits(copied, bits)
    expected = detector.score(np.repeat(full[..., None], 3, axis=2).astype(np.float32)).image_score
    assert detector.score(tmp_path / "few.png").image_score == expected
    assert [s.image_score for s in detector.score_many([("a", tmp_path / "few.png")])] == [expected]
    data = (tmp_path / "few.png").read_bytes()
    assert batch.one(detector, data, "few.png")[0]["score"] == expected
    (row,) = batch.rows(detector, batch_source.Files((tmp_path / "few.png",)))
    assert row["score"] == expected


def test_a_bundle_without_bits_reads_sixteen(copied: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 65536, (64, 64))
    Image.fromarray(picture.astype(np.uint16)).save(tmp_path / "deep.png")
    pixels = np.repeat(picture[..., None] / 65535, 3, axis=2).astype(np.float32)
    old = with_bits(copied, None)
    assert old.scorer.image.bits == "auto"
    assert old.score(tmp_path / "deep.png").image_score == old.score(pixels).image_score


def test_files_arrays_and_batches_score_alike(copied: Path, files: list[Path]) -> None:
    detector = bundle.load(copied)
    from_file, from_text = detector.score(files[0]), detector.score(str(files[0]))
    from_array = detector.score(images.read(files[0]))
    (one,) = detector.score_many([("x", files[0].name)], files[0].parent)
    assert facts(from_file) == facts(from_text) == facts(from_array) == facts(one)
    assert one.sample_id == "x"
    assert detector.threshold == detector.card["threshold"]
    assert detector.sha256 == digest(copied / "SHA256SUMS")


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_in_any_file_is_noticed(copied: Path, place: float) -> None:
    for name in sorted(p.name for p in copied.iterdir()):
        data = (copied / name).read_bytes()
        position = int(place * (len(data) - 1))
        (copied / name).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(IntegrityError, match=str(copied)):
            bundle.load(copied)
        (copied / name).write_bytes(data)
    bundle.verify(copied)


@pytest.mark.parametrize("bit", [1, 32, 128])
def test_every_flipped_byte_of_the_list_of_hashes_is_noticed(copied: Path, bit: int) -> None:
    sums = copied / "SHA256SUMS"
    data = sums.read_bytes()
    for position in range(0, len(data), 3):
        sums.write_bytes(data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :])
        with pytest.raises(IntegrityError):
            bundle.verify(copied)


def test_a_missing_or_foreign_file_is_noticed(copied: Path, tmp_path: Path) -> None:
    (copied / "more.txt").touch()
    with pytest.raises(IntegrityError, match=r"more\.txt"):
        bundle.load(copied)
    (copied / "more.txt").unlink()
    (copied / "calibration.json").unlink()
    with pytest.raises(IntegrityError, match="fetch it again"):
        bundle.load(copied)
    with pytest.raises(IntegrityError, match="expected a bundle"):
        bundle.load(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("name", ["weights.safetensors", "statistics.safetensors", "backbone.safetensors", "extra.pt"])
def test_a_pickle_is_never_loaded_not_even_under_right_hashes(copied: Path, name: str) -> None:
    (copied / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(IntegrityError):
        bundle.load(copied)
    bundle.seal(copied)
    if name != "extra.pt":  # an unknown file is not opened
        with pytest.raises((IntegrityError, SafetensorError)):
            bundle.load(copied)
    else:
        bundle.load(copied)


def test_another_format_is_refused(copied: Path) -> None:
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(values | {"format": 99}))
    bundle.seal(copied)
    with pytest.raises(IntegrityError, match="found 99; install the version of pvqae that made it"):
        bundle.load(copied)


def test_a_bundle_of_format_5_scores_as_before(copied: Path, files: list[Path], tmp_path: Path) -> None:
    """It has no memory of places."""
    values = json.loads((copied / "config.json").read_text())
    score = values["score"] | {"map": {"joint": 4.0, "stride8": 4.0}, "blur": 4.0}
    (copied / "config.json").write_text(json.dumps(values | {"format": 5, "score": score}))
    tensors = load_file(copied / "statistics.safetensors")
    assert {name for name in tensors if ".place." in name} >= {"memory.place.places", "normal.place.mean"}
    kept = {name: tensor for name, tensor in tensors.items() if ".place." not in name}
    save_file(kept, copied / "statistics.safetensors")
    bundle.seal(copied)
    old = bundle.load(copied)
    assert set(old.scorer.networks.memories) == {"stride16", "stride8", "joint"}
    formats.convert(bundle.read(copied), tmp_path / "today", bundle.REPAIR)
    today = bundle.load(tmp_path / "today")
    assert (old.config["format"], today.config["format"]) == (5, formats.CURRENT)
    assert [facts(today.score(file)) for file in files] == [facts(old.score(file)) for file in files]


def test_a_bundle_of_format_6_divides_no_distances(copied: Path, files: list[Path], tmp_path: Path) -> None:
    """It has no spacing of codes, and its statistics are of plain distances."""
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(values | {"format": 6}))
    tensors = load_file(copied / "statistics.safetensors")
    assert {name for name in tensors if name.endswith(".spacing")} == {
        f"memory.{name}.spacing" for name in ("stride16", "stride8", "joint")
    }
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".spacing")}
    save_file(kept, copied / "statistics.safetensors")
    bundle.seal(copied)
    old = bundle.load(copied)
    assert all(getattr(memory, "spacing", None) is None for memory in old.scorer.networks.memories.values())
    formats.convert(bundle.read(copied), tmp_path / "today", bundle.REPAIR)
    today = bundle.load(tmp_path / "today")
    assert (old.config["format"], today.config["format"]) == (6, formats.CURRENT)
    assert [facts(today.score(file)) for file in files] == [facts(old.score(file)) for file in files]


def test_another_engine_than_the_threshold_s_is_told(copied: Path) -> None:
    assert bundle.load(copied).engine_note == ""
    values = json.loads((copied / "config.json").read_text())
    assert values["engine"] == bundle.load(copied).scorer.networks.backbone.engine
    bare = {key: value for key, value in values.items() if key != "engine"}
    said = "the threshold was made with torch 1.0: scores differ by rounding"
    for changed, told in ((bare | {"engine": "torch 1.0"}, said), (bare, "")):
        (copied / "config.json").write_text(json.dumps(changed))
        bundle.seal(copied)
        assert bundle.load(copied).engine_note.endswith(told)


def test_a_backbone_of_other_weights_is_refused(copied: Path, tmp_path: Path) -> None:
    state = {name: value + 1 for name, value in efficientnet.load(efficientnet.weights()).state_dict().items()}
    save_file(state, str(copied / "backbone.safetensors"))
    bundle.seal(copied)
    with pytest.raises(IntegrityError, match="backbone weights"):
        bundle.load(copied)


def test_nothing_in_a_bundle_tells_time_place_or_person(workspace: Layout) -> None:
    for name in ("config.json", "calibration.json", "SHA256SUMS"):
        text = (workspace.bundle("cloth") / name).read_text()
        assert str(workspace.root) not in text
        assert str(Path.home()) not in text
    assert {(p.stat().st_mode & 0o777) for p in workspace.bundle("cloth").iterdir()} == {0o644}


def test_an_export_needs_neither_cache_nor_package(
    copied: Path, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    here = [facts(s) for s in bundle.load(copied).score_many((str(f), f) for f in files)]
    sha256 = bundle.export(copied, tmp_path / "out")
    assert sha256 == bundle.verify(tmp_path / "out") == bundle.export(copied, tmp_path / "out")
    assert sha256 != bundle.sha256_of(copied)
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(efficientnet, "packaged_checkpoint", lambda name: tmp_path / "absent.pth")
    with pytest.raises(OSError, match="absent"):
        bundle.load(copied)
    assert [facts(s) for s in bundle.load(tmp_path / "out").score_many((str(f), f) for f in files)] == here
    assert not list((tmp_path / "cache").rglob("*"))
    assert bundle.export(tmp_path / "out", tmp_path / "out again") == sha256


def test_a_save_that_fails_leaves_the_old_bundle(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, before = bundle.load(copied), bundle.sha256_of(copied)
    scorer = replace(detector.scorer, normals={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        bundle.save(copied, scorer, config.Params(), "cloth", {"codebook_usage": float("nan")}, {})
    assert bundle.verify(copied) == before


def test_scores_are_plain_numbers(copied: Path, files: list[Path]) -> None:
    scored = bundle.load(copied).score(files[0])
    json.dumps([scored.image_score, scored.parts], allow_nan=False)
    assert scored.anomaly_map.dtype == np.float32


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")


def halved(folder: Path) -> None:
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)


def overwritten(folder: Path) -> None:
    """In place, as `cp` does: same inode, another content of the same length."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


CHANGES = [emptied, halved, overwritten, removed]


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_loaded_detector_has_nothing_to_do_with_its_folder(
    copied: Path, tmp_path: Path, files: list[Path], change: Callable[[Path], None], exported: bool
) -> None:
    torch.set_num_threads(1)
    if exported:
        bundle.export(copied, tmp_path / "out")
    folder = tmp_path / "out" if exported else copied
    kept, scored = bundle.load(folder), bundle.load(folder)
    before = [facts(kept.score(file)) for file in files]
    change(folder)  # before the second one has scored anything
    assert [facts(scored.score(file)) for file in files] == [facts(kept.score(file)) for file in files] == before
    assert scored.sha256 == kept.sha256


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_is_what_is_parsed(copied: Path, files: list[Path], change: Callable[[Path], None]) -> None:
    before = facts(bundle.load(copied).score(files[0]))
    read = bundle.read(copied)
    normals = profile.read(read)
    change(copied)
    assert facts(bundle.parse(read).score(files[0])) == before
    assert bundle.threshold(read) == read.json("calibration.json", "")["threshold"]
    pd.testing.assert_frame_equal(profile.read(read), normals)


def test_an_export_seals_what_was_read(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, parse = bundle.export(copied, tmp_path / "out"), bundle.parse

    def changed_meanwhile(read: Sealed) -> bundle.Detector:
        overwritten(copied)
        return parse(read)

    monkeypatch.setattr(bundle, "parse", changed_meanwhile)
    assert bundle.export(copied, tmp_path / "again") == expected
