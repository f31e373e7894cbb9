"""`pvqae export` from a bundle to a folder that gives its scores without torch and without this project."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError, ParityError
from pvqae.core.files import read_folder, seal_folder
from pvqae.export import export, parity, run_exported
from pvqae.inference import bundle
from pvqae.inference.scoring import Scorer
from pvqae.samples import images
from pvqae.serving import batch
from pvqae.serving.batch_source import Files

Picture = Callable[..., np.ndarray]
MODEL = config.Model(width=8, code_dim=4, codes=16)  # of the fixture `scorer`
CARD = {"threshold": 1.5, "map_threshold": 3.0, "map_scale": [0.0, 4.0], "pixel": {"threshold": 2.0}}
BLOCKED = "torch", "pvqae", "onnx", "scipy", "pandas"
WITHOUT = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pictures(picture: Picture, root: Path) -> list[Path]:
    """Square, letterboxed both ways, and one with a dent."""
    files = []
    for number, shape in enumerate([(128, 128), (50, 125), (300, 100), (140, 130)]):
        image = picture(90 + number, *shape)
        if number == 3:
            image[20:40, 30:60] = 0.02
        files.append(root / f"{number}.png")
        images.write(files[-1], image)
    return files


def saved(scorer: Scorer, folder: Path, model: config.Model = MODEL) -> Path:
    params = config.Params(model=model, image=scorer.image, score=scorer.score, prior=config.Prior(width=16))
    bundle.save(folder, scorer, params, "part", {}, CARD)
    return folder


def onnx_of(scorer: Scorer, out: Path, tell: Callable[[str], None], files: list[Path]) -> parity.Parity:
    return export.export(saved(scorer, out.parent / "bundle"), out, files, tell)


@pytest.fixture(scope="module")
def files(picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pictures(picture, tmp_path_factory.mktemp("images"))


# The true script, asked to load another folder.
CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
import run
from pathlib import Path
from typing import Any
try:
    run.Detector(Path(sys.argv[2]))
except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def exported(
    scorer: Scorer, files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Scorer, list[str]]:
    """The gated fusion of the memory; the folder, the scorer, and what was told."""
    mine = replace(scorer, score=scorer.score.model_copy(update={"fusion": "gated", "recon": "memory"}))
    folder, told = tmp_path_factory.mktemp("exported") / "out", []
    onnx_of(mine, folder, told.append, files)
    return folder, bundle.load(folder.parent / "bundle").scorer, told


def test_the_folder_is_whole_and_says_what_it_is(exported: tuple[Path, Scorer, list[str]]) -> None:
    folder, scorer, told = exported
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "card.json", "run.py", "reading.zip", "SHA256SUMS"}
    read_folder(folder, "an export", "")
    card = json.loads((folder / "card.json").read_text())
    assert card["threshold"] == 1.5
    assert card["opset"] == export._OPSET
    assert card["bundle_sha256"] == bundle.sha256_of(folder.parent / "bundle")
    assert card["preprocessing"]["size"] == scorer.image.size
    assert "parity on 4 images" in "".join(told)
    assert (card["format"], card["precision"], card["parity"]["images"]) == ("onnx", "float32", 4)
    assert 0 <= max(card["parity"]["score"], card["parity"]["anomaly_map"]) <= card["parity"]["limit"] == 1e-4


@pytest.fixture(scope="module")
def intermediate(exported: tuple[Path, Scorer, list[str]], files: list[Path]) -> Path:
    """The same bundle for OpenVINO."""
    folder = exported[0].with_name("intermediate")
    export.export(exported[0].with_name("bundle"), folder, files, str, form="openvino")
    return folder


def test_openvino_ir_gives_the_scores_with_openvino_alone(
    intermediate: Path, exported: tuple[Path, Scorer, list[str]], files: list[Path], tmp_path: Path
) -> None:
    assert {p.name for p in intermediate.iterdir()} == {
        *("model.xml", "model.bin", "card.json", "run.py", "reading.zip", "SHA256SUMS")
    }
    assert b'element_type="f16"' not in (intermediate / "model.xml").read_bytes()
    read_folder(intermediate, "an export", "")
    card = json.loads((intermediate / "card.json").read_text())
    assert card["format"] == "openvino"
    assert card["parity"]["score"] <= 1e-4
    blocked = (*BLOCKED, "onnxruntime", "openvino_telemetry")
    command = [sys.executable, "-I", "-c", WITHOUT.format(blocked=blocked), intermediate / "run.py"]
    done = subprocess.run([*command, *files, "--maps", tmp_path], capture_output=True, text=True, check=True)
    detector = bundle.load(exported[0].parent / "bundle")
    for number, (row, file) in enumerate(zip(map(json.loads, done.stdout.splitlines()), files, strict=True)):
        scored = detector.score(file)
        assert row["score"] == pytest.approx(scored.image_score, rel=1e-4, abs=1e-4)
        assert row["precision"] == "float32"
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), scored.anomaly_map, rtol=1e-4, atol=1e-4)


def test_a_missing_runtime_or_graph_is_named(intermediate: Path, files: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", WITHOUT.format(blocked=("openvino",)), intermediate / "run.py", files[0]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: blocked: openvino; install the package, which this detector needs\n"
    folder = Path(shutil.copytree(intermediate, tmp_path / "changed"))
    (folder / "model.xml").unlink()
    seal_folder(folder)
    with pytest.raises(ValueError, match=r"model\.xml: not in SHA256SUMS"):
        run_exported.Detector(folder)


def test_the_batch_is_dynamic_and_company_does_not_matter(exported: tuple[Path, Scorer, list[str]]) -> None:
    folder, scorer, _ = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == list(export._OUTPUTS)
    side = scorer.image.size
    pixels = np.random.default_rng(0).random((3, 3, side, side), dtype=np.float32)
    valid = np.ones((3, side, side), dtype=np.bool_)
    three = session.run(None, {"pixels": pixels, "valid": valid})
    for index in range(3):
        one = session.run(None, {"pixels": pixels[index : index + 1], "valid": valid[index : index + 1]})
        for alone, together in zip(one, three, strict=True):
            np.testing.assert_allclose(alone[0], together[index], rtol=1e-4, atol=1e-4)


def test_the_script_gives_the_bundle_s_scores_where_torch_and_this_project_can_t_be_imported(
    exported: tuple[Path, Scorer, list[str]], files: list[Path], tmp_path: Path
) -> None:
    folder = exported[0]
    command = [sys.executable, "-I", "-c", WITHOUT.format(blocked=BLOCKED), str(folder / "run.py")]
    done = subprocess.run([*command, *files, "--maps", tmp_path], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == [str(file) for file in files]
    for number, (row, file) in enumerate(zip(rows, files, strict=True)):
        scored = bundle.load(folder.parent / "bundle").score(file)
        assert row["score"] == pytest.approx(scored.image_score, rel=1e-4, abs=1e-4)
        assert row["decision"] == ("defect" if scored.image_score > 1.5 else "normal")
        assert row["parts"] == pytest.approx(scored.parts, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), scored.anomaly_map, rtol=1e-4, atol=1e-4)
        _assert_marks_agree(row, bundle.load(folder.parent / "bundle"), scored)


def _assert_marks_agree(row: dict[str, Any], detector: bundle.Detector, scored: bundle.Scored) -> None:
    """The same regions, but for pixels nearer to the threshold than the two maps are to each other."""
    ours = detector.marks(scored)
    assert ours is not None
    assert row["pixel_threshold"] == detector.pixel_threshold
    assert row["marked_area"] == pytest.approx(ours["marked_area"], abs=5 / scored.anomaly_map.size)
    if (np.abs(scored.anomaly_map - 2.0) > 1e-3).all():
        assert row["region_count"] == ours["region_count"]
        for mine, theirs in zip(row["regions"], ours["regions"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("name", ["model.onnx", "card.json", "run.py", "reading.zip", "SHA256SUMS"])
def test_a_changed_byte_is_refused_by_the_script_too(
    exported: tuple[Path, Scorer, list[str]], tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(exported[0], tmp_path / "changed"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-IB", "-c", CHECK, exported[0], folder], capture_output=True, text=True)
    assert done.returncode == 1
    assert "expected sha256" in done.stderr or "No such file" in done.stderr
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(ValueError, match=r"card\.json: expected sha256 one in SHA256SUMS"):
        run_exported._check(folder)


def test_an_image_that_is_none_gets_a_line_and_the_others_their_scores(
    exported: tuple[Path, Scorer, list[str]], files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.png").write_bytes(files[0].read_bytes()[:100])
    words = [sys.executable, "-I", exported[0] / "run.py", tmp_path / "cut.png", tmp_path / "none.png", files[0]]
    done = subprocess.run(words, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(row)[:2] for row in rows[:2]] == [["error", "image"]] * 2
    assert rows[2]["decision"] in ("normal", "defect")
    assert done.returncode == 1


def odd(root: Path) -> None:
    """Files of many kinds, some of which no detector should score."""
    rng = np.random.default_rng(4)
    colour = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    deep = rng.integers(0, 65536, (90, 120), dtype=np.uint16)
    with_alpha, turned = colour.copy(), Image.Exif()
    with_alpha.putalpha(Image.fromarray(rng.integers(0, 256, (90, 120), dtype=np.uint8)))
    turned[0x0112] = 6
    (root / "nested" / "deeper").mkdir(parents=True)
    colour.save(root / "colour.png")
    colour.convert("P").save(root / "palette.png")
    colour.convert("1").save(root / "bilevel.png")
    colour.convert("L").save(root / "nested" / "GREY.PNG")
    colour.convert("CMYK").save(root / "cmyk.tif")
    colour.convert("F").save(root / "float.tif")
    with_alpha.save(root / "alpha.png")
    Image.fromarray(deep).save(root / "deep.png")
    Image.fromarray(deep.astype(np.int32) * 70000).save(root / "int32.tif")
    Image.fromarray(deep.astype(np.int32)).save(root / "int32-small.tif")
    colour.save(root / "nested" / "deeper" / "turned.jpg", exif=turned)
    for name in ("pages.tif", "moving.webp", "moving.png"):
        colour.save(root / name, save_all=True, append_images=[colour.convert("L").convert("RGB")])
    colour.save(root / "gif.png", "GIF")
    colour.save(root / "shape.gif")
    colour.crop((0, 0, 60, 5)).save(root / "flat.png")
    whole = (root / "colour.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[60] ^= 1
    (root / "flipped.png").write_bytes(flipped)
    (root / "huge.pgm").write_bytes(b"P5\n90000 90000\n255\n")
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no picture")
    (root / ".hidden.png").write_bytes(whole)
    (root / "notes.txt").write_text("no picture")
    (root / "link.png").symlink_to("/etc/hostname")
    (root / "inner.png").symlink_to("colour.png")
    (root / "folder.png").mkdir()


def test_the_script_scores_what_the_product_scores_and_refuses_the_rest_in_the_same_words(
    exported: tuple[Path, Scorer, list[str]], tmp_path: Path
) -> None:
    odd(tmp_path)
    folder, places = exported[0], [tmp_path / "none.png", tmp_path]
    done = subprocess.run([sys.executable, "-I", folder / "run.py", *places], capture_output=True, text=True)
    theirs = {row["image"]: row for row in map(json.loads, done.stdout.splitlines())}
    ours = {row["path"]: row for row in batch.rows(bundle.load(folder.parent / "bundle"), Files(tuple(places)))}
    assert list(theirs) == list(ours)
    assert {name: row.get("error", "") for name, row in theirs.items()} == {k: row["error"] for k, row in ours.items()}
    scored = [name for name, row in ours.items() if not row["error"]]
    assert len(scored) >= 9
    assert len(ours) - len(scored) >= 9
    for name in scored:
        assert theirs[name]["score"] == pytest.approx(ours[name]["score"], rel=1e-4, abs=1e-4)
        assert theirs[name]["decision"] == ours[name]["decision"]


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_tiled_image_is_judged_over_all_its_views(
    exported: tuple[Path, Scorer, list[str]], picture: Picture, tiles: int
) -> None:
    """The graph is the same for every aspect: only the card says how images are laid out."""
    folder, scorer, _ = exported
    detector = run_exported.Detector(folder)
    changed = {"aspect": "tile", "tiles": tiles}
    detector.card["preprocessing"] |= changed
    image = picture(95, 200, 500)
    image[100:112, 400:412] = 0.02
    scored = replace(scorer, image=scorer.image.model_copy(update=changed)).one(image)
    found = detector.score(image)
    assert found["score"] == pytest.approx(scored.image_score, rel=1e-4, abs=1e-4)
    assert found["parts"] == pytest.approx(scored.parts, rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(found["anomaly_map"], scored.anomaly_map, rtol=1e-4, atol=1e-4)


def test_a_difference_leaves_nothing(
    scorer: Scorer, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = saved(scorer, tmp_path / "bundle"), tmp_path / "deep" / "out"
    monkeypatch.setattr(export, "_write_graph", lambda detector, path: path.write_bytes(b"graph"))
    with pytest.raises(ParityError, match=r"run\.py failed"):
        export.export(folder, out, files, str)
    off = parity.Parity(3, 2e-4, 1e-6, "worst.png", 1.0, 1.0)
    monkeypatch.setattr(parity, "check", lambda *_: off)
    told: list[str] = []
    with pytest.raises(ParityError, match=r"worst.png: .*2.0e-04"):
        export.export(folder, out, files, told.append)
    assert "2.0e-04" in "".join(told)
    assert not list(out.parent.iterdir())


def test_an_image_that_parity_can_t_be_checked_on_is_named(
    exported: tuple[Path, Scorer, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"torn\.png: parity can't be checked on it: .*expected a readable image"):
        parity._exported(exported[0], [tmp_path / "torn.png"], tmp_path)


def test_a_difference_that_is_no_number_is_a_failure() -> None:
    with pytest.raises(ParityError):
        parity.Parity(1, float("nan"), 0.0, "a.png", 1.0, 1.0).insist()


def test_what_can_t_be_exported_is_refused_before_anything_is_written(
    scorer: Scorer, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = saved(scorer, tmp_path / "bundle"), tmp_path / "out"
    monkeypatch.setattr(export, "_BACKBONES", ("another",))
    with pytest.raises(ConfigError, match="efficientnet_lite0"):
        export.export(folder, out, files, str)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="expected a format of onnx, openvino, found tflite"):
        export.export(folder, out, files, str, form="tflite")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "openvino" else object())
    with pytest.raises(ConfigError, match=r"openvino are missing; install pvqae\[export\]"):
        export.export(folder, out, files, str, form="openvino")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="neither a new folder nor an earlier export"):
        export.export(folder, tmp_path, files, str)
    with pytest.raises(DataError, match="folder of images"):
        export.run(folder, out, tmp_path / "absent", str)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]
    assert saved(scorer, folder)  # still there, whole
