"""The runner in C++ says what run.py says, of real photographs and of odd files."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvqae import api
from pvqae.core.files import seal_folder
from pvqae.export import export

ROOT = Path(__file__).parents[2]
DATASETS = os.environ.get("PVQAE_DATASETS", str(ROOT.parent / "shared" / "datasets")).split(os.pathsep)
BOTTLE = next((Path(place, "mvtec", "bottle") for place in DATASETS if Path(place, "mvtec", "bottle").is_dir()), None)
RUNTIME = os.environ.get("ONNXRUNTIME_ROOT", "")
PREFIXES = [*filter(None, os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep)), "/usr"]  # as CMake looks, too
MISSING = [name for name in ("cmake", "g++") if shutil.which(name) is None]
HEADERS = ["stb/stb_image.h", "nlohmann/json.hpp", *([] if RUNTIME else ["onnxruntime/onnxruntime_cxx_api.h"])]
MISSING += [name for name in HEADERS if not any(Path(place, "include", name).is_file() for place in PREFIXES)]
MISSING += [] if BOTTLE else ["the photographs of mvtec/bottle (PVQAE_DATASETS)"]
pytestmark = [
    pytest.mark.integration,  # a compiler and an export: a minute
    pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNXRUNTIME_ROOT; without it the library of the installed wheel, which run.py computes with, for the system's
    headers.
    """
    if RUNTIME:
        return Path(RUNTIME)
    folder = tmp_path_factory.mktemp("runtime")
    wheel = importlib.util.find_spec("onnxruntime")
    assert wheel is not None
    assert wheel.origin is not None
    (library,) = Path(wheel.origin).parent.glob("capi/libonnxruntime.so.*")
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return folder


@pytest.fixture(scope="module")
def runner(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", ROOT / "infra" / "runner", "-B", build, f"-DONNXRUNTIME_ROOT={runtime}"]
    for command in (configure, ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "pvqae_runner"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert BOTTLE is not None
    normals = sorted((BOTTLE / "train" / "good").iterdir())[:12]
    api.fit(normals).save(folder / "bundle")
    export.export(folder / "bundle", folder / "out", normals[:2], str)
    return folder / "out"


def lines(*command: str | Path) -> tuple[int, list[dict[str, object]]]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def compare(runner: Path, exported: Path, places: list[Path], within: float) -> list[dict[str, object]]:
    code, ours = lines(sys.executable, "-I", exported / "run.py", "--threads", "1", *places)
    other, theirs = lines(runner, exported, *places, "--threads", "1")
    assert code == other
    for mine, its in zip(ours, theirs, strict=True):
        assert list(mine) == list(its)
        if "error" not in mine:
            assert its["score"] == pytest.approx(mine["score"], rel=within, abs=within)
            same = ("image", "decision", "threshold", "precision", "pixel_threshold")
            assert {key: mine[key] for key in same} == {key: its[key] for key in same}
    return theirs


def test_real_photographs_get_the_same_lines(runner: Path, exported: Path) -> None:
    assert BOTTLE is not None
    places = [sorted(kind.iterdir())[0] for kind in sorted((BOTTLE / "test").iterdir())]
    theirs = compare(runner, exported, places, 1e-5)
    assert {line["decision"] for line in theirs} == {"normal", "defect"}
    _, ours = lines(sys.executable, "-I", exported / "run.py", "--threads", "1", *places)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["marked_area"] == pytest.approx(its["marked_area"], abs=1e-4)
        assert mine["region_count"] == its["region_count"]


def test_odd_files_get_the_same_lines(runner: Path, exported: Path, tmp_path: Path) -> None:
    assert BOTTLE is not None
    photograph = Image.open(next((BOTTLE / "test" / "good").iterdir())).convert("RGB")
    photograph.resize((3000, 2200)).save(tmp_path / "large.png")
    photograph.resize((700, 200)).save(tmp_path / "wide.png")
    photograph.resize((40, 30)).save(tmp_path / "small.png")
    photograph.resize((5, 30)).save(tmp_path / "tiny.png")
    photograph.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:5000])
    theirs = compare(runner, exported, [tmp_path], 1e-5)
    assert sum("error" in line for line in theirs) == 3
    photograph.save(tmp_path / "photograph.jpg", quality=92)
    compare(runner, exported, [tmp_path / "photograph.jpg"], 0.1)  # stb and libjpeg round colours differently


def test_tiles_are_judged_together(runner: Path, exported: Path, tmp_path: Path) -> None:
    assert BOTTLE is not None
    folder = Path(shutil.copytree(exported, tmp_path / "tiled"))
    card = json.loads((folder / "card.json").read_text())
    card["preprocessing"] |= {"aspect": "tile", "tiles": 2}
    (folder / "card.json").write_text(json.dumps(card))
    seal_folder(folder)
    photograph = Image.open(next((BOTTLE / "test" / "broken_large").iterdir()))
    photograph.resize((900, 500)).save(tmp_path / "wide.png")
    compare(runner, folder, [tmp_path / "wide.png"], 1e-4)


def test_the_map_is_a_picture_and_what_is_no_export_is_named(runner: Path, exported: Path, tmp_path: Path) -> None:
    assert BOTTLE is not None
    image = next((BOTTLE / "test" / "broken_large").iterdir())
    lines(runner, exported, image, "--maps", tmp_path / "maps")
    with Image.open(tmp_path / "maps" / "0.png") as found:
        assert found.mode == "L"
        assert np.asarray(found).std() > 5
    for words, code, text in (([tmp_path, image], 1, "card.json: no such file"), ([exported], 2, "usage: ")):
        done = subprocess.run([runner, *words], capture_output=True, text=True)
        assert done.returncode == code
        assert text in done.stderr
