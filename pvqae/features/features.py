"""What the network reads of one image, kept on disk by content: only new images are decoded and pushed through a frozen
backbone.

Views are computed image by image: of a batch of 16 the last bits depend on what else is in it, so that kept features
would not be what a run without them computes. On a processor one at a time is as fast.

V views of one image; S side of a view; h w the coarsest grid.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.files import open_regular, resolve, whole_file
from pvqae.core.tensors import checksum, parse_notes, parse_tensors
from pvqae.features import richness
from pvqae.model.backbones import Backbone, Features
from pvqae.samples import geometry, images

_PACKAGE = Path(__file__).parent.parent
_DECODING = ("samples/decoding.py", "samples/geometry.py", "samples/images.py", "features/features.py")
_CHUNK = 8  # views through the backbone at once
_MODELS = ("model/backbones.py", "model/efficientnet.py", "model/foreign.py")
_Tensors = dict[str, Tensor]


@dataclass
class _Counts:
    """What reading has cost so far."""

    images: int = 0
    decoded: int = 0
    backbone_views: int = 0  # through a frozen backbone
    cache_hits: int = 0  # images of which everything was kept

    def __str__(self) -> str:
        return (
            f"{self.images} images: {self.decoded} decoded, {self.backbone_views} views through the backbone, "
            f"{self.cache_hits} from the cache"
        )

    def facts(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Store:
    """Small files of tensors by key below `folder`, at most `gigabytes` after `trim`; None or 0 keep nothing.

    Files are written whole or not at all; one that is not what was written counts as absent. A full disk costs speed
    only. Several processes may use it at once.
    """

    folder: Path | None = None
    gigabytes: float = 0.0
    counts: _Counts = field(default_factory=_Counts)

    def get(self, key: str) -> _Tensors | None:
        """Return the tensors of `key`, None where they are absent or damaged."""
        if self.folder is None or not self.gigabytes:
            return None
        path = self._path(self.folder, key)
        try:
            data = path.read_bytes()
            found = parse_tensors(data)
            if parse_notes(data).get("sha256") != checksum(found, key):  # another key's file is none of this one
                return None
            os.utime(path)  # the oldest use goes first
        except (OSError, SafetensorError, KeyError):
            return None
        return found

    def put(self, key: str, tensors: _Tensors) -> None:
        """Keep the tensors of `key`; where that fails they are absent."""
        if self.folder is None or not self.gigabytes:
            return
        with (
            contextlib.suppress(OSError, SafetensorError),
            whole_file(self._path(self.folder, key), shared=True) as part,
        ):
            whole = {name: x.contiguous() for name, x in tensors.items()}
            save_file(whole, part, {"sha256": checksum(tensors, key)})

    def trim(self) -> None:
        """Remove what was not used for longest until the rest fits."""
        if self.folder is None or not self.gigabytes:
            return
        files = [(stat.st_mtime_ns, stat.st_size, path) for path in self.folder.glob("*/*") if (stat := _stat(path))]
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self.gigabytes * 1e9:
                break
            path.unlink(missing_ok=True)
            left -= size

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process trims, too
        return None


@dataclass(frozen=True, eq=False)
class Views:
    """One image as the network reads it; half precision."""

    images: Tensor | None  # V x 3 x S x S in [0, 1], where the backbone is trained
    features: Features | None  # where it is frozen
    cost: Tensor  # V x h x w in [0, 1], not yet rescaled
    valid: Tensor  # V x S x S booleans


_SHIFT, _GAIN = 0.03, 0.05  # of the image's sides and of its brightness, at most


def jittered(image: images.Floats, draws: np.random.Generator) -> images.Floats:
    """Return an image (H0, W0, 3) in [0, 1] as if its part had lain a little elsewhere under a slightly other lamp.

    It is shifted by whole pixels, its border repeated, and its brightness multiplied.
    """
    height, width, _ = image.shape
    down, right = (int(draws.integers(-most, most + 1)) for most in (round(_SHIFT * height), round(_SHIFT * width)))
    rows, columns = np.arange(height) - down, np.arange(width) - right
    moved = image[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    gain = np.float32(draws.uniform(1 - _GAIN, 1 + _GAIN))
    changed: images.Floats = (moved * gain).clip(0, 1)
    return changed


class Reader:
    """Reads images below `data_root` for one backbone and one measure of richness."""

    def __init__(
        self, data_root: Path, image: config.Image, backbone: Backbone, measure: str, device: str, store: Store
    ) -> None:
        self.root, self.image, self.backbone, self.device = data_root, image, backbone, device
        self.measure, self.store = measure, store
        self._geometry = _key_of(image.model_dump(mode="json"), _source_of(*_DECODING))
        self._seen_by = _key_of(self._geometry, _identity(backbone, device))
        self._measured = _key_of(self._geometry, measure, _source_of("features/richness.py"))

    def read(self, path: str, expected: str = "") -> Views:
        """Return the views of an image. Raises `DataError` where it has to be decoded and can't be, `IntegrityError`
        where it is not the one with the sha256 `expected`.
        """
        counts, data = self.store.counts, self._content(path)
        sha256 = hashlib.sha256(data).hexdigest() if data else ""
        if sha256 and expected and sha256 != expected:
            raise IntegrityError(f"{path}: expected sha256 {expected}, found {sha256}; restore it (`dvc checkout`)")
        keys = _key_of(sha256, self._seen_by), _key_of(sha256, self._measured)
        kept = self.store.get(keys[0])
        cost = self._cost(keys[1], kept)
        counts.images += 1
        if kept is not None and cost is not None:
            counts.cache_hits += 1
            return _views(kept, cost)
        counts.decoded += 1
        # What is kept under a hash is of the bytes that have it; a file that can't be read says why when it is decoded.
        bits = self.image.bits
        pixels = images.decode(data, path, bits)[0] if data else images.read(path, self.root, bits)
        found = self._seen(pixels, through=kept is None, measured=cost is None)
        if kept is None:
            kept = {name: x for name, x in found.items() if name != "cost"}
            self.store.put(keys[0], kept)
        if cost is None:
            cost = found["cost"]
            self.store.put(keys[1], {"cost": cost})
        return _views(kept, cost)

    def _content(self, path: str) -> bytes:
        try:
            with open_regular(resolve(self.root, path)) as file:
                return file.read()
        except OSError:
            return b""

    def _cost(self, key: str, kept: _Tensors | None) -> Tensor | None:
        if self.measure == "none" and kept is not None:  # needs no pixels
            views, side = kept["valid"].shape[:2]
            return torch.ones(views, side // 32, side // 32, dtype=torch.half)
        found = self.store.get(key)
        return None if found is None else found["cost"]

    def retake(self, path: str, draws: np.random.Generator) -> Views:
        """Return the views of an image as if its camera had taken it again, never kept: each pixel is off by up to half
        a grey level of 8 bit, the least by which two photographs of a part differ; what is black or saturated stays so.
        """
        pixels = images.read(path, self.root, self.image.bits)
        noise = (draws.random((*pixels.shape[:2], 1), dtype=np.float32) - np.float32(0.5)) / 255
        again = np.where((pixels > 0) & (pixels < 1), (pixels + noise).clip(0, 1), pixels)
        kept, cells = self._seen(again, through=True, measured=False), self.image.size // 32
        return _views(kept, torch.ones(len(kept["valid"]), cells, cells))

    def _seen(self, image: images.Floats, through: bool, measured: bool) -> _Tensors:
        """Return what is kept of an image's views where they are to go `through` the backbone, and their `cost` where
        it is to be `measured`.

        Some views at a time: all views of a large image are several times its pixels.
        """
        views, runs = geometry.canvas(image, self.image).views, list[_Tensors]()
        for some in (views[i : i + _CHUNK] for i in range(0, len(views), _CHUNK)):
            pixels, run = torch.from_numpy(np.stack([view.pixels for view in some])), _Tensors()
            if through:
                run = self._kept(pixels) | {"valid": torch.from_numpy(np.stack([view.valid for view in some]))}
            if measured:
                run["cost"] = richness.cost(pixels, self.measure).half()
            runs.append(run)
        return {name: torch.cat([run.pop(name) for run in runs]) for name in list(runs[0])}

    def _kept(self, pixels: Tensor) -> _Tensors:
        if not self.backbone.spec.frozen:
            return {"images": pixels.half()}
        self.store.counts.backbone_views += len(pixels)
        return self._features(pixels)

    def _features(self, pixels: Tensor) -> _Tensors:
        found = self.backbone(pixels.to(self.device).contiguous(memory_format=torch.channels_last))
        named = {f"level_{r}": x for r, x in enumerate(found.levels)} | {"target": found.target}
        return {name: x.half().cpu().contiguous() for name, x in named.items()}


def _views(kept: _Tensors, cost: Tensor) -> Views:
    levels = [kept[f"level_{r}"] for r in range(sum(name.startswith("level_") for name in kept))]
    features = Features(levels, kept["target"]) if levels else None
    return Views(kept.get("images"), features, cost, kept["valid"])


def _key_of(*facts: object) -> str:
    """Return the hex sha256 that names work: equal facts, equal work."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def _source_of(*files: str) -> str:
    """Return the hash of files of this package: what other code has computed is never used."""
    total = hashlib.sha256()
    for name in files:
        total.update(name.encode() + (_PACKAGE / name).read_bytes())
    return total.hexdigest()


def _identity(backbone: Backbone, device: str) -> object:
    """Return all that decides the last bit of a frozen backbone's features; of a trained one only pixels are kept."""
    if not backbone.spec.frozen:
        return "pixels"
    computed = [torch.__version__, backbone.engine, device]
    machine = [*computed, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    own = [type(backbone).__name__, asdict(backbone.spec), backbone.facts()]
    return [backbone.weights_sha256, *own, _source_of(*_MODELS), machine]
