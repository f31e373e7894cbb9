"""The bundle: one folder that scores images. safetensors + JSON + hashes; no pickle, no time, no path inside.

weights.safetensors     autoencoder, prior (and a trained backbone); a decoder that no score comes from as bytes: only
                        a warm start goes on from it; empty where nothing was trained (train.steps: 0)
statistics.safetensors  codes of the memories, scales, statistics of normals
config.json             what to build, and the health of the training
calibration.json        the card: threshold and how it was found
profile.json            what trusted normals look like, for drift (see `drift.profile`)
backbone.safetensors    only in what leaves the project (`export`); inside it is named by its hash
SHA256SUMS              of all the others; its own sha256 is the bundle's
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pvqae.core import config
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import BACKBONE, SUMS, Sealed, read_folder, seal_folder, whole_folder
from pvqae.core.tensors import pack, unpack
from pvqae.inference import formats
from pvqae.inference.measures import (
    JOINT,
    PLACE,
    STRIDES,
    Allocator,
    AnyMemory,
    Memory,
    Networks,
    PlaceMemory,
    Projection,
)
from pvqae.inference.scoring import Normal, Scale, Scored, Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.prior.prior import from_tensors
from pvqae.samples import geometry, images

_NEEDED = ("weights.safetensors", "statistics.safetensors", "config.json", "calibration.json")
REPAIR = "copy the whole bundle again, or train the class again"
_DECODER = "autoencoder.decoder."
_NORMAL_FIELDS = ("mean", "deviation", "global_mean", "global_deviation")


@dataclass(frozen=True, eq=False)
class Detector:
    """A loaded bundle."""

    scorer: Scorer
    config: dict[str, Any]
    card: dict[str, Any]
    sha256: str

    @property
    def threshold(self) -> float:
        return float(self.card["threshold"])

    @property
    def pixel_threshold(self) -> float | None:
        """Map value above which a pixel is marked; None in bundles of formats and versions that had none."""
        return float(self.card["pixel"]["threshold"]) if self.card.get("pixel") else None

    @property
    def engine_note(self) -> str:
        """What to tell where another engine computes here than the one that the threshold was made with; else ""."""
        here, made = self.scorer.networks.backbone.engine, self.config.get("engine")
        if made in (None, here):  # from before there were others than PyTorch
            return ""
        return f"features are computed by {here} here, the threshold was made with {made}: scores differ by rounding"

    @property
    def notes(self) -> list[str]:
        """What to tell once before scores are: that no false-alarm rate is promised, and `engine_note`."""
        promise = self.card.get("no_promise")
        name = f"{self.config['category']} " if promise else ""
        return [text for text in (f"{name}{promise or ''}", self.engine_note) if text]

    def marks(self, scored: Scored) -> dict[str, Any] | None:
        """Return the share, number, boxes and highest values of what is marked, see `geometry.marks`; None as above."""
        limit = self.pixel_threshold
        return None if limit is None else geometry.marks(scored.anomaly_map, limit, scored.canvas.image_shape)

    def mask(self, scored: Scored) -> images.Mask | None:
        """Return which pixels of the image (H0, W0) are marked; None as above."""
        limit = self.pixel_threshold
        return None if limit is None else geometry.on_image(scored.anomaly_map > limit, scored.canvas.image_shape)

    def score(self, image: Path | str | images.Floats, sample_id: str = "") -> Scored:
        """Score a file, or pixels (H0, W0, 3) in [0, 1]. Raises `DataError` for an unreadable file."""
        pixels = images.read(image, bits=self.scorer.image.bits) if isinstance(image, Path | str) else image
        return self.scorer.one(pixels, sample_id)

    def score_many(self, items: Iterable[tuple[str, Path | str]], root: Path | None = None) -> Iterator[Scored]:
        """Score (sample_id, path) pairs, several at once, in their order; paths below `root`."""
        return self.scorer.many(items, root)


def save(
    folder: Path,
    scorer: Scorer,
    params: config.Params,
    category: str,
    health: dict[str, Any],
    card: dict[str, Any],
    profile: dict[str, Any] | None = None,
) -> str:
    """Write a bundle whole or not at all, profile.json only if there is one; return its sha256."""
    found = scorer.networks
    with whole_folder(folder) as part:
        save_file(_weights(found, scorer.score.recon), part / "weights.safetensors")
        save_file(_statistics(scorer), part / "statistics.safetensors")
        _write_json(part / "config.json", _config(scorer, params, category, health))
        _write_json(part / "calibration.json", card)
        if profile is not None:
            _write_json(part / "profile.json", profile)
        return seal(part)


def _config(scorer: Scorer, params: config.Params, category: str, health: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": formats.CURRENT,
        "dataset": params.data.name,
        "category": category,
        "image": scorer.image.model_dump(mode="json"),
        "model": params.model.model_dump(mode="json"),
        "score": scorer.score.model_dump(mode="json"),
        "prior_width": params.prior.width,
        "scales": {name: [scale.mean, scale.deviation] for name, scale in scorer.scales.items()},
        "backbone_sha256": scorer.networks.backbone.weights_sha256,
        "engine": scorer.networks.backbone.engine,
        **({} if (about := scorer.networks.backbone.facts()) is None else {"backbone": about}),
        "health": health,
    }


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: (v.half() if v.is_floating_point() else v).contiguous().clone() for k, v in tensors.items()}


def _weights(found: Networks, recon: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if found.allocator is not None:
        tensors |= {f"autoencoder.{k}": v for k, v in found.allocator.autoencoder.state_dict().items()}
        tensors |= {f"prior.{k}": v for k, v in found.allocator.prior.state_dict().items()}
    if not found.backbone.spec.frozen:
        tensors |= {f"backbone.{k}": v for k, v in found.backbone.state_dict().items()}
    unused = {k for k, v in tensors.items() if recon == "memory" and k.startswith(_DECODER) and v.ndim > 1}
    # All was rounded to half precision when its training ended, so that loses nothing.
    kept = _half({k: v for k, v in tensors.items() if k not in unused})
    for name in sorted(unused):
        kept |= pack(name, tensors[name])
    return kept


def _statistics(scorer: Scorer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, memory in scorer.networks.memories.items():
        if isinstance(memory, PlaceMemory):
            tensors |= {f"memory.{name}.places": memory.as_bytes(), f"memory.{name}.root": memory.root}
        else:
            tensors |= {f"memory.{name}.codes": memory.as_bytes(), f"memory.{name}.scale": memory.scale}
            if memory.spacing is not None:
                tensors[f"memory.{name}.spacing"] = memory.spacing.half()
        tensors |= {f"memory.{name}.mean": memory.mean, f"memory.{name}.step": memory.step}
        if memory.projection is not None:
            own = memory.projection
            tensors |= {f"memory.{name}.signs": own.signs, f"memory.{name}.rows": own.rows}
    if scorer.networks.whitening is not None:
        tensors["whitening"] = scorer.networks.whitening.half()
    for name, normal in scorer.normals.items():
        tensors |= {f"normal.{name}.{field}": getattr(normal, field) for field in _NORMAL_FIELDS}
    return {k: v.contiguous().clone() for k, v in tensors.items()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")


def seal(folder: Path) -> str:
    """Write SHA256SUMS over all files of `folder`; return its own sha256."""
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes them private to the user
    return seal_folder(folder)


def verify(folder: Path) -> str:
    """Check every file against SHA256SUMS; return the bundle's sha256.

    Raises `IntegrityError` for a missing, foreign or changed file.
    """
    return read(folder).sha256


def read(folder: Path) -> Sealed:
    """Return the checked files of a bundle. Raises as `verify`."""
    return read_folder(folder, "a bundle", "run `dvc repro` or fetch it again")


def load(folder: Path | str) -> Detector:
    """Verify and load a bundle.

    Raises `IntegrityError` if anything is not what was sealed, or what was sealed is no bundle. The detector does not
    need the folder any more: what becomes of it changes no score.
    """
    return parse(read(Path(folder)))


def parse(files: Sealed) -> Detector:
    """Return the detector in the files of a bundle. Raises `IntegrityError` if they hold none."""
    try:
        return _load(files)
    except (IntegrityError, OSError):
        raise
    except Exception as error:  # hashes say that the files are as they were sealed, not by whom
        reason = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"{files.folder}: not the contents of a bundle: {reason}; {REPAIR}") from error


def _load(files: Sealed) -> Detector:
    if missing := [name for name in _NEEDED if name not in files.files]:
        raise IntegrityError(
            f"{files.folder}: expected the files {', '.join(_NEEDED)}, found no {missing[0]}; {REPAIR}"
        )
    facts = files.json("config.json", REPAIR)
    formats.check(facts.get("format"), files.folder)
    card = files.json("calibration.json", REPAIR)
    _check_finite(card["threshold"], card["map_threshold"], *card["map_scale"])
    if card.get("pixel"):
        _check_finite(card["pixel"]["threshold"])
    today, tensors = formats.upgraded(facts, files.tensors("statistics.safetensors"))
    model, image, score = config.Model(**facts["model"]), config.Image(**facts["image"]), config.Score(**today["score"])
    backbone = _backbone(files, model, image, facts)
    networks = _networks(files, model, image, score, backbone, facts["prior_width"])
    networks = replace(networks, memories=_memories(tensors), whitening=_float(tensors.get("whitening")))
    scales = {name: Scale(*values) for name, values in facts["scales"].items()}
    _check_finite(*(x for scale in scales.values() for x in (scale.mean, scale.deviation)))
    return Detector(Scorer(networks, _normals(tensors), scales, image, score), facts, card, files.sha256)


def _check_finite(*numbers: float) -> None:
    """Raise `ValueError` for a number that is not finite: with a threshold of NaN every part would pass as good."""
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"finite numbers expected, found {numbers}")


def threshold(files: Sealed) -> float:
    """Return the threshold in a bundle's files without building its networks.

    Raises `IntegrityError` if it is no finite number.
    """
    file = files.folder / "calibration.json"
    found = files.json(file.name, REPAIR).get("threshold") if file.name in files.files else None
    with contextlib.suppress(OverflowError):  # JSON's integers have no limit
        if isinstance(found, int | float) and math.isfinite(found):
            return float(found)
    raise IntegrityError(f"{file}: expected a finite threshold, found {found!r}; {REPAIR}")


def _backbone(files: Sealed, model: config.Model, image: config.Image, facts: dict[str, Any]) -> backbones.Backbone:
    own, expected = files.files.get(BACKBONE), facts["backbone_sha256"]
    try:
        backbone = backbones.make(model, own, image.size, facts.get("backbone")).eval()
    except ConfigError as error:
        raise IntegrityError(f"{files.folder}: {error}") from None
    if backbone.weights_sha256 != expected:
        place = "in it" if own else "installed"
        raise IntegrityError(
            f"{files.folder}: made with backbone weights {expected}, found {backbone.weights_sha256} {place}; install "
            "the version of pvqae that made it, or use an exported bundle, which carries its own"
        )
    return backbone


def _networks(
    files: Sealed,
    model: config.Model,
    image: config.Image,
    score: config.Score,
    backbone: backbones.Backbone,
    width: int,
) -> Networks:
    tensors = unpack(files.tensors("weights.safetensors"))
    if own := _below("backbone.", tensors):
        backbone.load_state_dict(own)
    backbone.eval().requires_grad_(False)
    if not (own := _below("autoencoder.", tensors)):
        return Networks(backbone, None, {}, None)
    autoencoder, side = Autoencoder(model, backbone.spec), image.size // 32
    autoencoder.load_state_dict(own)
    autoencoder.eval().requires_grad_(False)
    prior = from_tensors(_below("prior.", tensors), (side, side), model.levels, width)
    return Networks(backbone, Allocator(autoencoder, prior, score.prior), {}, None)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _memories(tensors: Mapping[str, Tensor]) -> dict[str, AnyMemory]:
    """Return the memories in the order of `memory_names`."""
    every = {name: _below(f"memory.{name}.", tensors) for name in (*STRIDES, JOINT, PLACE)}
    return {name: _memory(own) for name, own in every.items() if own}


def _memory(own: dict[str, Tensor]) -> AnyMemory:
    projection = Projection(own["signs"], own["rows"]) if "signs" in own else None
    if "places" in own:
        return PlaceMemory(own["mean"], own["places"].float() * own["step"], own["step"], own["root"], projection)
    codes, nobody = own["codes"].float() * own["step"], torch.empty(0, dtype=torch.long)
    spacing = _float(own.get("spacing"))
    return Memory(own["mean"], own["scale"].float(), codes, own["step"], nobody, projection, spacing)


def _normals(tensors: Mapping[str, Tensor]) -> dict[str, Normal]:
    names = {name.split(".")[1] for name in tensors if name.startswith("normal.")}
    return {name: Normal(*(tensors[f"normal.{name}.{field}"] for field in _NORMAL_FIELDS)) for name in sorted(names)}


def export(folder: Path, out: Path) -> str:
    """Copy a bundle with its backbone's weights: what leaves the project needs nothing else. Returns its sha256."""
    files = read(folder)
    backbone = parse(files).scorer.networks.backbone
    own = files.files.get(BACKBONE) or backbone.installed_weights()
    with whole_folder(out) as part:
        for name, data in files.files.items():
            (part / name).write_bytes(data)
        if own:
            (part / BACKBONE).write_bytes(own)
        return seal(part)


def sha256_of(folder: Path) -> str:
    """Return the bundle's sha256 without reading the other files."""
    return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
