"""What run.py does itself must be what the project does: decode, resize, lay out, stitch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pvqae.core import config, files
from pvqae.export import export, run_exported
from pvqae.samples import geometry

Picture = Callable[..., np.ndarray]


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (31, 700), (1, 90), (128, 100)])
@pytest.mark.parametrize("size", [(64, 64), (33, 128), (200, 333), (3, 5)])
def test_resizing_is_the_training_s(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    found = run_exported._resize(image, *size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, geometry._resize(image, *size), atol=1e-6)


SETTINGS = [
    *({"aspect": aspect} for aspect in geometry._ASPECTS),
    {"aspect": "tile", "tiles": 2},
    {"aspect": "tile", "tiles": 3, "overlap": 0.3},
    {"aspect": "tile", "tiles": 2, "overlap": 0.0},
]


@pytest.mark.parametrize("shape", [(100, 90), (70, 300), (301, 128), (3, 600), (200, 450)])
@pytest.mark.parametrize("settings", SETTINGS)
def test_views_and_stitched_maps_are_the_project_s(shape: tuple[int, int], settings: dict[str, object]) -> None:
    params = config.Image.model_validate({"size": 64, **settings})
    image = np.random.default_rng(1).random((*shape, 3), dtype=np.float32)
    canvas = geometry.canvas(image, params)
    (height, width), found = run_exported._views(image, params.model_dump())
    assert (height, width) == (canvas.height, canvas.width)
    assert [(view.top, view.left) for view in found] == [(view.top, view.left) for view in canvas.views]
    for mine, theirs in zip(found, canvas.views, strict=True):
        np.testing.assert_array_equal(mine.valid, theirs.valid)
        np.testing.assert_allclose(mine.pixels, theirs.pixels, atol=1e-6)
    maps = np.random.default_rng(2).random((len(found), 64, 64), dtype=np.float32)
    stitched = run_exported._stitch((height, width), found, maps)
    np.testing.assert_array_equal(stitched, canvas.stitch(list(maps)))


def test_what_it_carries_needs_numpy_and_pillow_alone(tmp_path: Path) -> None:
    export._write_program(tmp_path)
    program = (
        "import runpy, sys, json; runpy.run_path(sys.argv[1], run_name='module');"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, tmp_path / "run.py"], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert {"numpy", "PIL", export._PACKAGE} <= loaded  # and one of two runtimes, when a detector is made
    assert not loaded & {"torch", "pvqae", "onnx", "pandas", "scipy", "pydantic"}


def test_what_it_carries_is_the_same_for_the_same_code(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export._write_program(tmp_path / name)
    assert (tmp_path / "one" / "reading.zip").read_bytes() == (tmp_path / "two" / "reading.zip").read_bytes()


@pytest.mark.parametrize("change", ["other", "", None])
def test_what_runs_is_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str | None) -> None:
    """The graph and the card come from the bytes that were hashed, whatever is in the files a moment later."""
    for name, text in {
        "card.json": json.dumps(card := {"threshold": 2.5, "format": "onnx", "preprocessing": {"size": 64}}),
        "model.onnx": "a graph",
        "reading.zip": "a zip",
        "run.py": "pass",
    }.items():
        (tmp_path / name).write_text(text)
    files.seal_folder(tmp_path)
    seen, check = [], run_exported._check

    class Session:
        def __init__(self, model: object, *_: object, **__: object) -> None:
            seen.append(model)

        def get_outputs(self) -> list[object]:
            return []

    def changed_after(folder: Path) -> dict[str, bytes]:
        found = check(folder)
        for name in (*run_exported._FILES, "model.onnx"):
            (folder / name).unlink() if change is None else (folder / name).write_text(change)
        return found

    monkeypatch.setattr(run_exported, "_check", changed_after)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert run_exported.Detector(tmp_path).card == card
    assert seen == [b"a graph"]
