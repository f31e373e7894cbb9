"""Weights of networks that no package brings: read from a file once, kept by their sha256 in the user's cache.

Each is one safetensors file. That of a Hugging Face model carries its configuration as notes, so its sha256 is that of
the whole network. `pvqae backbone add` and `fetch` keep files; nothing here uses a network.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pvqae.core import runtime
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import open_regular, read_json, whole_file
from pvqae.core.tensors import parse_notes, parse_tensors

if TYPE_CHECKING:
    from torch import Tensor

PIN = 16  # digits of a sha256 that params.yaml names weights by; a bundle has all 64
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"  # of a Hugging Face model's folder; notes of its file
_WEIGHTS = "model.safetensors"
_NESTED = ("state_dict", "model", "teacher")  # where training programs put the tensors of a checkpoint
_END = ".safetensors"


def from_file(path: Path, sha256: str = "") -> bytes:
    """Return the weights in a .safetensors file, or in a PyTorch checkpoint of the given sha256, as safetensors.

    A checkpoint is a pickle: it is read by PyTorch's safe reader (`weights_only`), and only after its bytes are known
    to be those that the user means. The same checkpoint gives the same bytes. Raises `IntegrityError` for another hash
    or for contents that are no tensors, `ConfigError` for a checkpoint without a hash.
    """
    data = _content(path)
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(sha256.lower()):
        raise IntegrityError(f"{path}: expected sha256 {sha256}, found {found}; name the file that was meant")
    if path.suffix == _END:
        read(data, str(path))
        return data
    if not sha256:
        raise ConfigError(
            f"{path}: a checkpoint that is no safetensors file is read only by its sha256, which its publisher names; "
            f"if it is {found}, give --sha256 {found}"
        )
    return _saved(_unpickled(data, path))


def from_folder(folder: Path) -> bytes:
    """Return the weights of a Hugging Face model's folder as safetensors, with its configuration as notes.

    Raises `IntegrityError` for a file that is missing or unreadable.
    """
    repair = f"the folder of a model has {CONFIG} and {_WEIGHTS}: copy it again"
    notes = {CONFIG: json.dumps(read_json(folder / CONFIG, repair), sort_keys=True)}
    if (folder / PREPROCESSOR).is_file():
        notes[PREPROCESSOR] = json.dumps(read_json(folder / PREPROCESSOR, repair), sort_keys=True)
    return _saved(read(_content(folder / _WEIGHTS), str(folder / _WEIGHTS)), notes)


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise IntegrityError(f"{path}: expected a file of weights, found none ({error.strerror}); copy it") from None


def read(data: bytes, where: str) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file's content. Raises `IntegrityError` naming `where` if it is none."""
    try:
        return parse_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"{where}: expected a whole safetensors file, found {error}; copy it again") from None


def _unpickled(data: bytes, path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        found = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, and the reader's own is one of pickle's
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntegrityError(f"{path}: expected a checkpoint of tensors alone, found {said}; convert it") from None
    for name in _NESTED:
        found = found[name] if isinstance(found, Mapping) and isinstance(found.get(name), Mapping) else found
    tensors = {k: x for k, x in found.items() if isinstance(x, torch.Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise IntegrityError(f"{path}: expected a checkpoint with tensors by name, found none; convert it")
    return {str(name).removeprefix("module."): x for name, x in tensors.items()}


def _saved(tensors: "Mapping[str, Tensor]", notes: dict[str, str] | None = None) -> bytes:
    from safetensors.torch import save

    return save({name: x.contiguous().clone() for name, x in tensors.items()}, notes)


def notes(data: bytes) -> dict[str, Any]:
    """Return the configurations that a Hugging Face model's file carries, by the names of their files."""
    return {name: json.loads(text) for name, text in parse_notes(data).items() if name in (CONFIG, PREPROCESSOR)}


def keep(data: bytes, facts: Mapping[str, object]) -> str:
    """Keep weights and what is known of them in the user's cache; return their sha256."""
    sha256 = hashlib.sha256(data).hexdigest()
    *_, last = folders = list(_folders())
    for folder in folders:
        try:
            with whole_file(folder / f"{sha256}{_END}", shared=True) as part:
                part.write_bytes(data)
            with whole_file(folder / f"{sha256}.json", shared=True) as part:
                part.write_text(json.dumps({**facts, "sha256": sha256}, indent=1, sort_keys=True) + "\n", "utf-8")
            break
        except PermissionError:
            if folder == last:
                raise
    return sha256


def kept() -> Iterator[dict[str, Any]]:
    """Yield what is known of all weights that are kept: backbone, sha256, licence, source; with their bytes."""
    for folder in _folders():
        for file in sorted(folder.glob("*.json")):
            if (weights := file.with_suffix(_END)).is_file():
                yield read_json(file, "remove it, then add the weights again") | {"bytes": weights.stat().st_size}


def find(pin: str, backbone: str, file: str = "") -> bytes:
    """Return the weights whose sha256 begins with `pin`: of `file` (or a model's folder) if it is there, else of those
    that are kept.

    Raises `IntegrityError` where there are none, or where they are others.
    """
    path = Path(file)
    if file and path.exists():
        whole = path.is_dir() or path.suffix == _END
        data = from_folder(path) if path.is_dir() else from_file(path, "" if whole else pin)
        if whole and not (found := hashlib.sha256(data).hexdigest()).startswith(pin):
            raise IntegrityError(
                f"{file}: expected weights whose sha256 begins with {pin}, found {found}; name the file that was "
                f"meant, or these weights in model.backbone: {backbone}@{found[:PIN]}"
            )
        return data
    for folder in _folders():
        for path in sorted(folder.glob(f"{pin}*{_END}")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != path.stem:
                raise IntegrityError(f"{path}: its bytes have changed; remove it, then add the weights again")
            return data
    raise IntegrityError(
        f"{backbone}@{pin}: expected its weights in {next(_folders())}{' or ' + file if file else ''}, found none; run "
        f"`pvqae backbone add {backbone} FILE` on this machine, or use an exported bundle, which carries its own"
    )


def _folders() -> Iterator[Path]:
    for folder in runtime.cache_folders():
        yield folder / "pvqae" / "backbones"
