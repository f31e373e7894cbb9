"""Files of weights: read after their hash, kept by it, refused when they are others."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.model import weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pvqae" / "backbones"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("nested", ["", "state_dict", "model"])
def test_a_checkpoint_is_read_by_its_sha256_and_becomes_safetensors(tmp_path: Path, nested: str) -> None:
    path = tmp_path / "w.pth"
    tensors = {f"module.{name}": x for name, x in TENSORS.items()}
    torch.save({nested: tensors, "epoch": 3} if nested else tensors, path)
    with pytest.raises(ConfigError, match=f"give --sha256 {sha256_of(path)}"):
        weights.from_file(path)
    data = weights.from_file(path, sha256_of(path))
    assert {name: x.tolist() for name, x in load(data).items()} == {name: x.tolist() for name, x in TENSORS.items()}
    assert data == weights.from_file(path, sha256_of(path))


def test_a_checkpoint_of_another_hash_is_not_even_opened(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "planted"),)

    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"a": Planted()}, protocol=2))
    with pytest.raises(IntegrityError, match=f"expected sha256 {'0' * 64}, found {sha256_of(path)}"):
        weights.from_file(path, "0" * 64)
    with pytest.raises(IntegrityError, match="expected a checkpoint of tensors alone"):
        weights.from_file(path, sha256_of(path))
    assert not (tmp_path / "planted").exists()


def test_corrupted_bytes_are_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes(file.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match=r"half\.safetensors: expected a whole safetensors file.*copy it again"):
        weights.from_file(tmp_path / "half.safetensors")
    with pytest.raises(IntegrityError, match=r"gone\.safetensors: expected a file of weights, found none"):
        weights.from_file(tmp_path / "gone.safetensors")


def test_what_is_kept_is_found_by_its_first_digits(file: Path, folder: Path) -> None:
    sha256 = weights.keep(file.read_bytes(), {"backbone": "timm:x", "licence": "mit"})
    assert sha256 == sha256_of(file)
    assert weights.find(sha256[:16], "timm:x") == file.read_bytes()
    assert list(weights.kept()) == [
        {"backbone": "timm:x", "licence": "mit", "sha256": sha256, "bytes": file.stat().st_size}
    ]
    with (folder / f"{sha256}.safetensors").open("ab") as kept:
        kept.write(b"x")
    with pytest.raises(IntegrityError, match="its bytes have changed; remove it, then add the weights again"):
        weights.find(sha256[:16], "timm:x")


def test_another_file_under_the_same_name_is_refused(file: Path) -> None:
    pin = sha256_of(file)[:16]
    assert weights.find(pin, "timm:x", str(file)) == file.read_bytes()
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(
        IntegrityError, match=f"begins with {pin}, found {sha256_of(file)}.*timm:x@{sha256_of(file)[:16]}"
    ):
        weights.find(pin, "timm:x", str(file))


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(IntegrityError, match=r"config\.json.*has config\.json and model\.safetensors: copy it again"):
        weights.from_folder(tmp_path / "empty")
