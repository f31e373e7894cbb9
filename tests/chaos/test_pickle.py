"""A pickle runs code when it is loaded, so none is: wherever one is planted, its marker never appears."""

import ast
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flows.retrain import index
from pvqae.core.errors import IntegrityError
from pvqae.features.examples import prepare
from pvqae.features.features import Store
from pvqae.inference import bundle
from pvqae.model import backbones, efficientnet
from pvqae.samples import images
from pvqae.training import run
from tests.chaos.conftest import PARAMS

PROJECT = Path(__file__).parents[2]
PLACES = ("weights.pt", "model.pth", "model.pkl", "array.npy", "extra.safetensors", "python_model.pkl", "data.joblib")


class Marker:
    """Loading it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def plain(marker: Path) -> bytes:
    return pickle.dumps(Marker(marker))


def of_torch(marker: Path) -> bytes:
    out = io.BytesIO()
    torch.save({"weights": Marker(marker)}, out)
    return out.getvalue()


def of_numpy(marker: Path) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Marker(marker)], dtype=object), allow_pickle=True)
    return out.getvalue()


def of_zip(marker: Path) -> bytes:
    """An .npz of objects."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("rows.npy", of_numpy(marker))
        archive.writestr("thumbs.npy", of_numpy(marker))
    return out.getvalue()


FORMS = (plain, of_torch, of_numpy, of_zip)


@pytest.fixture(params=FORMS)
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    made: bytes = request.param(tmp_path / "marker")
    return made


@pytest.fixture(autouse=True)
def _never_loaded(tmp_path: Path) -> object:
    yield
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("form", "load"), [(plain, pickle.load), (of_torch, torch.load), (of_numpy, np.load)])
def test_the_marker_works(form: Callable[[Path], bytes], load: Callable[..., object], tmp_path: Path) -> None:
    """Else the other tests would prove nothing."""
    options = {torch.load: {"weights_only": False}, np.load: {"allow_pickle": True}}.get(load, {})
    load(io.BytesIO(form(tmp_path / "works")), **options)
    assert (tmp_path / "works").is_dir()


def test_as_a_file_of_a_bundle(planted: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    for name in [path.name for path in tiny_bundle.iterdir()] + ["backbone.safetensors"]:
        own = Path(shutil.copytree(tiny_bundle, tmp_path / f"own-{name}"))
        (own / name).write_bytes(planted)
        for seal in (False, True):  # right hashes: whoever planted it could write those, too
            if seal and name != "SHA256SUMS":
                bundle.seal(own)
            if seal and name == "profile.json":
                continue  # drift alone reads it
            with pytest.raises(IntegrityError, match=str(own)):
                bundle.load(own)


def test_beside_the_files_of_a_bundle(planted: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_bundle, tmp_path / "own"))
    for name in PLACES:
        (own / name).write_bytes(planted)
    with pytest.raises(IntegrityError, match="expected the files"):
        bundle.load(own)
    bundle.seal(own)
    assert bundle.load(own).threshold == 1.0  # files of other names are not opened


def test_in_the_artifacts_of_a_registered_version(planted: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    """As MLflow hands them over: its own folder of a model, our bundle within."""
    model = tmp_path / "artifacts"
    shutil.copytree(tiny_bundle, model / "artifacts" / "bundle")
    for name in PLACES:
        (model / name).write_bytes(planted)
        (model / "artifacts" / "bundle" / name).write_bytes(planted)
    with pytest.raises(IntegrityError):
        bundle.load(model / "artifacts" / "bundle")


def test_in_the_folder_of_checkpoints(planted: bytes, tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    for name in ("checkpoint.safetensors", *PLACES):
        (tmp_path / name).write_bytes(planted)
        assert run._restore_checkpoint(tmp_path / name, network, {}) is None


def test_in_the_cache_of_features(planted: bytes, tmp_path: Path) -> None:
    images.write(tmp_path / "a.png", np.full((64, 64, 3), 0.5, dtype=np.float32))
    network, frame = backbones.make(PARAMS.model).eval(), pd.DataFrame({"path": ["a.png"]})

    def read() -> torch.Tensor:
        return prepare(frame, tmp_path, PARAMS.image, network, "none", store=Store(tmp_path / "kept", 1)).valid

    before = read()
    for path in (tmp_path / "kept").rglob("*.safetensors"):
        path.write_bytes(planted)
        path.with_suffix(".pt").write_bytes(planted)
    assert torch.equal(read(), before)


def test_in_the_cache_of_the_backbone(planted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = efficientnet._cached_weights()
    before = file.read_bytes()
    file.write_bytes(planted)
    file.with_suffix(".pth").write_bytes(planted)
    assert efficientnet._cached_weights().read_bytes() == before


def test_in_the_index_of_arrivals(planted: bytes, tmp_path: Path) -> None:
    (tmp_path / "index.npz").write_bytes(planted)
    assert index._load(tmp_path / "index.npz") == {}


UNPICKLING = ("pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")
# The backbone's package ships a .pth; it is read once, after its pinned sha256, and by torch's own safe reader.
ALLOWED = {"pvqae/model/efficientnet.py": 1, "pvqae/model/weights.py": 1}


def unsafe(tree: ast.AST) -> list[str]:
    """What a module imports or calls that could load a pickle."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in UNPICKLING]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if call in ("torch.load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.package"):
                found.append(call if options.get("weights_only") == "True" else f"{call} without weights_only")
            if options.get("allow_pickle", "False") != "False" or (call == "np.load" and "allow_pickle" not in options):
                found.append(f"{call} allow_pickle")
    return found


def test_no_code_of_ours_can_load_one() -> None:
    for path in [*PROJECT.glob("pvqae/**/*.py"), *PROJECT.glob("flows/**/*.py")]:
        name, found = path.relative_to(PROJECT).as_posix(), unsafe(ast.parse(path.read_text("utf-8")))
        assert found == ["torch.load"] * ALLOWED.get(name, 0), name


def test_the_search_finds_them() -> None:
    code = "import pickle\nfrom joblib import load\ntorch.load(x)\nnp.load(x)\nnp.load(x, allow_pickle=True)\n"
    assert len(unsafe(ast.parse(code))) == 5
