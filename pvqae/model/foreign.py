"""Frozen backbones by name: `timm:NAME@SHA256`, any network of timm with feature maps, and `hf:FOLDER@SHA256`, a vision
transformer of Hugging Face's transformers. Both libraries come with the extra `pvqae[backbones]`.

The first digits of the weights' sha256 belong to the name, so that other weights are another backbone to params.yaml,
to DVC and to the registry. Which layers are read, and how pixels go in, is decided once (`_Reading`) and kept in the
bundle; a bundle reads what it was made with, whatever a newer library says.

B batch; C channels of a layer; S side of a view; h w grid of a layer; R levels; T channels of the target.
"""

import difflib
import hashlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core.config import Model
from pvqae.core.errors import ConfigError
from pvqae.model import weights

_COARSEST = 32  # stride of the coarsest level
_PILLOW = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # what preprocessor_config.json numbers
_KEPT_ALIVE: list[object] = []


@dataclass(frozen=True)
class Tap:
    """A layer that can be read: pixels of the network's input per cell, channels."""

    name: str
    stride: int
    channels: int


@dataclass(frozen=True)
class _Reading:
    """What is read of a network, and how pixels go in."""

    taps: tuple[Tap, ...]  # coarse to fine; the first R are the levels, one more is for the joint memory alone
    mean: tuple[float, ...]  # of pixels in [0, 1], per colour
    deviation: tuple[float, ...]
    side: int  # of the network's input, pixels
    interpolation: str  # by which a view of another side is brought to it

    @property
    def plain(self) -> bool:
        """Whether all layers are of one resolution, as a plain transformer's are."""
        return len({tap.stride for tap in self.taps}) == 1

    @property
    def joint(self) -> tuple[Tap, ...]:
        """The layers whose features the joint memory puts together, fine to coarse: of several resolutions all but the
        coarsest, which blurs.
        """
        return self.taps[::-1] if self.plain or len(self.taps) == 1 else self.taps[:0:-1]


class Network(nn.Module):
    """`forward(x_B3SS, indices)` → the layers `offered[i]` for i of `indices`, B x C x h x w each."""

    offered: tuple[Tap, ...]  # shallow to deep
    mean: Sequence[float]
    deviation: Sequence[float]
    interpolation: str
    library: str
    fixed: int | None = None  # the only side that the network takes

    def resize(self, side: int) -> None:
        """Prepare for inputs of another side than the network was made for."""


def split(name: str) -> tuple[str, str]:
    """Return the name of a backbone without its weights, and the first digits of their sha256, "" where none."""
    base, _, pin = name.rpartition("@")
    return (base, pin.lower()) if base and pin and not set(pin.lower()) - set("0123456789abcdef") else (name, "")


def content(model: Model) -> bytes:
    """Return the weights that params name, a safetensors file's content.

    Raises `ConfigError` for a name without their sha256, `IntegrityError` where they are not there or others.
    """
    base, pin = split(model.backbone)
    _family(base)
    if len(pin) >= weights.PIN:
        return weights.find(pin, base, model.weights or (base.partition(":")[2] if base.startswith("hf:") else ""))
    known = ", ".join(f"{base}@{one['sha256'][: weights.PIN]}" for one in weights.kept() if one["backbone"] == base)
    raise ConfigError(
        f"model.backbone: expected {base}@ and the first {weights.PIN} digits of its weights' sha256, found "
        f"{model.backbone}; " + (f"kept here: {known}" if known else f"run `pvqae backbone add {base} FILE`")
    )


def network(name: str, data: bytes) -> Network:
    """Return the network of a name without sha256, with its weights.

    Raises `ConfigError` where the extra is not installed, the name is unknown, the weights are of another network, or
    it has no feature maps.
    """
    return _family(name)(name.partition(":")[2], data).eval().requires_grad_(False)


def reading(found: Network, model: Model, size: int) -> _Reading:
    """Return what of a network to read for views of `size` pixels: as params say, else by rule.

    Of several resolutions: the layers nearest to strides 32, 16, 8, ..., and the next finer one for the joint memory.
    Of one resolution: layers at equal shares of the depth, the deepest for the coarsest level.
    """
    offered = found.offered
    if model.taps == "auto":
        taps = _depths(offered, model.levels) if len({t.stride for t in offered}) == 1 else _strides(offered, model)
    else:
        taps = _named(offered, model.taps, model.levels)
    patch = taps[0].stride if len({tap.stride for tap in offered}) == 1 else 1
    side = -(-size // patch) * patch if model.input == "auto" else model.input
    side = found.fixed or side if model.input == "auto" else side
    if side % patch:
        raise ConfigError(f"model.input: expected a multiple of the patch's {patch} pixels, found {side}")
    mean = found.mean if model.mean == "auto" else model.mean
    deviation = found.deviation if model.deviation == "auto" else model.deviation
    interpolation = found.interpolation if model.interpolation == "auto" else model.interpolation
    return _Reading(taps, tuple(mean), tuple(deviation), side, interpolation)


def _depths(offered: tuple[Tap, ...], levels: int) -> tuple[Tap, ...]:
    shares = [(levels - r) / (levels + 1) for r in range(levels)]
    return tuple(offered[max(0, round(share * len(offered)) - 1)] for share in shares)


def _strides(offered: tuple[Tap, ...], model: Model) -> tuple[Tap, ...]:
    def nearest(stride: float) -> Tap:
        return min(reversed(offered), key=lambda tap: abs(math.log2(tap.stride / stride)))  # the deeper of two

    taps = tuple(nearest(_COARSEST / 2**r) for r in range(model.levels))
    finer = nearest(_COARSEST / 2**model.levels)
    return (*taps, finer) if finer.stride < taps[-1].stride else taps


def _named(offered: tuple[Tap, ...], names: Sequence[str], levels: int) -> tuple[Tap, ...]:
    known = {tap.name: tap for tap in offered}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"model.taps: expected layers among {', '.join(known)}, found {', '.join(unknown)}")
    if len(names) not in (levels, levels + 1):
        raise ConfigError(
            f"model.taps: expected {levels} layers, coarse to fine, one for each of model.levels, or one more for the "
            f"joint memory; found {len(names)}"
        )
    return tuple(known[name] for name in names)


class Frozen(nn.Module):
    """`forward(x_B3SS in [0, 1])` → the maps of a reading's taps, B x C x h x w each, coarse to fine."""

    def __init__(self, found: Network, use: _Reading):
        super().__init__()
        if found.fixed not in (None, use.side):
            raise ConfigError(
                f"model.input: this network takes images of {found.fixed} pixels only, found {use.side}; set "
                f"model.input to {found.fixed}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the libraries interpolate their tables
            found.resize(use.side)
        self.network, self.use = found, use
        names = [tap.name for tap in found.offered]
        self.indices = [names.index(tap.name) for tap in use.taps]
        self.register_buffer("mean", torch.tensor(use.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(use.deviation).view(3, 1, 1), persistent=False)

    mean: Tensor
    deviation: Tensor

    def forward(self, x_B3SS: Tensor) -> list[Tensor]:
        use = self.use
        if x_B3SS.shape[-1] != use.side:
            corners = None if use.interpolation == "nearest" else False
            x_B3SS = F.interpolate(x_B3SS, (use.side, use.side), mode=use.interpolation, align_corners=corners)
        order = sorted(set(self.indices))
        found = dict(zip(order, self.network((x_B3SS - self.mean) / self.deviation, order), strict=True))
        return [found[i] for i in self.indices]


def facts(name: str, data_sha256: str, use: _Reading, library: str) -> dict[str, Any]:
    """Return what a bundle says of its backbone."""
    return {"name": split(name)[0], "sha256": data_sha256, "library": library, **asdict(use)}


def recorded(known: Mapping[str, Any], offered: tuple[Tap, ...]) -> _Reading:
    """Return the reading that a bundle was made with. Raises `ConfigError` where the network has other layers now."""
    taps = tuple(Tap(**tap) for tap in known["taps"])
    if missing := [tap for tap in taps if tap not in offered]:
        raise ConfigError(
            f"{known['name']}: expected the layers {', '.join(map(str, missing))}, found others in the installed "
            f"library; install {known['library']}"
        )
    values = {key: known[key] for key in ("side", "interpolation")}
    return _Reading(taps, tuple(known["mean"]), tuple(known["deviation"]), **values)


def make(model: Model, data: bytes | None, size: int, known: Mapping[str, Any] | None) -> tuple[Frozen, dict[str, Any]]:
    """Return a backbone's network for views of `size` pixels, and its facts; see `network` and `reading`."""
    data = content(model) if data is None else data
    with torch.random.fork_rng(devices=[]):  # the libraries draw weights before they load them
        found = network(split(model.backbone)[0], data)
    use = recorded(known, found.offered) if known else reading(found, model, size)
    about = facts(model.backbone, hashlib.sha256(data).hexdigest(), use, found.library)
    return Frozen(found, use), about


def library(name: str) -> Any:
    """Import timm or transformers. Raises `ConfigError` where it is not installed.

    Both import torchvision, which refuses to beside a torch that it was not built with (a CPU build, or a machine's
    own): two of its operators are unknown then. Nothing here calls them, so it is told their names.
    """
    if find_spec(name) is None:
        raise ConfigError(f"model.backbone: the package {name} is missing; install pvqae[backbones]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision about its image readers, which nothing uses
        if find_spec("torchvision") is not None:
            try:
                importlib.import_module("torchvision")
            except RuntimeError:
                for half in [key for key in sys.modules if key.partition(".")[0] == "torchvision"]:
                    del sys.modules[half]
                typed: Any = torch.library
                operators = typed.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                _KEPT_ALIVE.append(operators)  # they go with it
                importlib.import_module("torchvision")
        return importlib.import_module(name)


def _fit(name: str, missing: Sequence[str], foreign: Sequence[str], shapes: Sequence[str]) -> None:
    """Raise `ConfigError` where weights are not those of a network."""
    words = [
        f"no {missing[0]} ({len(missing)} missing)" if missing else "",
        f"{foreign[0]}, which it has not ({len(foreign)} such)" if foreign else "",
        f"{shapes[0]} ({len(shapes)} of another shape)" if shapes else "",
    ]
    if found := "; ".join(word for word in words if word):
        raise ConfigError(
            f"{name}: expected the tensors of this network, found {found}; name the network that the weights belong to"
        )


class _Timm(Network):
    """A network of timm; its `forward_intermediates` serves convolutions and transformers alike."""

    def __init__(self, name: str, data: bytes):
        super().__init__()
        timm = library("timm")
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"timm:{name}: no network of {_library('timm')}{hint}")
        body = timm.create_model(name, pretrained=False, num_classes=0)
        if not hasattr(body, "forward_intermediates") or not getattr(body, "feature_info", None):
            raise ConfigError(f"timm:{name}: this network has no feature maps; choose another")
        self.body, settings = body, body.pretrained_cfg
        self._load(name, weights.read(data, f"timm:{name}"))
        self.offered = tuple(
            Tap(str(one["module"]), int(one["reduction"]), int(one["num_chs"])) for one in body.feature_info
        )
        self.mean, self.deviation = settings["mean"], settings["std"]
        self.interpolation = settings["interpolation"] if settings["interpolation"] in _PILLOW.values() else "bicubic"
        self.library = _library("timm")
        if settings.get("fixed_input_size") and not hasattr(body, "set_input_size"):
            self.fixed = int(settings["input_size"][-1])

    def _load(self, name: str, tensors: dict[str, Tensor]) -> None:
        expected = self.body.state_dict()
        if convert := getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None):
            tensors = dict(convert(tensors, self.body))
        head = self.body.pretrained_cfg.get("classifier") or ()
        heads = (head,) if isinstance(head, str) else tuple(head)
        extra = [key for key in tensors if key not in expected and not key.startswith(tuple(f"{h}." for h in heads))]
        shapes = [
            f"{key} of {tuple(tensors[key].shape)} instead of {tuple(x.shape)}"
            for key, x in expected.items()
            if key in tensors and tensors[key].shape != x.shape
        ]
        _fit(f"timm:{name}", [key for key in expected if key not in tensors], extra, shapes)
        self.body.load_state_dict({key: tensors[key].float() for key in expected})

    def resize(self, side: int) -> None:
        if hasattr(self.body, "set_input_size"):
            self.body.set_input_size(img_size=(side, side))

    def forward(self, x_B3SS: Tensor, indices: Sequence[int]) -> list[Tensor]:
        found: list[Tensor] = self.body.forward_intermediates(
            x_B3SS, indices=list(indices), norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return found


class _HuggingFace(Network):
    """A vision transformer of transformers, tokens on their grid; class and register tokens are dropped."""

    def __init__(self, name: str, data: bytes):
        super().__init__()
        transformers = library("transformers")
        about = weights.notes(data)
        if weights.CONFIG not in about:
            raise ConfigError(f"hf:{name}: expected weights with a configuration, found none; run `pvqae backbone add`")
        self.body, config = _transformer(transformers, name, about[weights.CONFIG], weights.read(data, f"hf:{name}"))
        self.patch, width = _square(config.patch_size), int(config.hidden_size)
        self.native = _square(config.image_size)
        self.layers = next(
            (m for m in self.body.modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers),
            None,
        )
        if self.layers is None:
            raise ConfigError(f"hf:{name}: a {config.model_type} has no feature maps here; choose a vision transformer")
        self.offered = tuple(Tap(f"layer.{i}", self.patch, width) for i in range(len(self.layers)))
        own = about.get(weights.PREPROCESSOR, {})
        self.mean, self.deviation = own.get("image_mean", [0.5] * 3), own.get("image_std", [0.5] * 3)
        self.interpolation = _PILLOW.get(own.get("resample", 3), "bicubic")
        self.library = _library("transformers")

    def resize(self, side: int) -> None:
        """Bring tables of positions to the grid of `side`, as the models themselves would for every image."""
        before, after = self.native // self.patch, side // self.patch
        for name, table in list(self.body.named_parameters()):
            if before != after and "position_embedding" in name and table.shape[-2] >= before**2:
                first = table.shape[-2] - before**2  # of the class
                grid = table[..., first:, :].reshape(1, before, before, -1).movedim(-1, 1)
                grid = F.interpolate(grid, (after, after), mode="bicubic", align_corners=False)
                new = torch.cat([table[..., :first, :].flatten(0, -2), grid[0].flatten(1).T])
                place, _, last = name.rpartition(".")
                module = self.body.get_submodule(place)
                setattr(module, last, nn.Parameter(new.view(*table.shape[:-2], *new.shape), requires_grad=False))
        for module in self.body.modules():
            if isinstance(getattr(module, "position_ids", None), Tensor):
                module.position_ids = torch.arange(after**2)[None]

    def forward(self, x_B3SS: Tensor, indices: Sequence[int]) -> list[Tensor]:
        states = self.body(x_B3SS, output_hidden_states=True).hidden_states
        side = x_B3SS.shape[-1] // self.patch
        return [states[i + 1][:, -side * side :].transpose(1, 2).unflatten(2, (side, side)) for i in indices]


def _transformer(transformers: Any, name: str, about: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Any, Any]:
    """Return a model in evaluation mode, and its configuration."""
    kind = about.get("model_type")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in about.items() if k != "model_type"})
        config = getattr(config, "vision_config", config)
        made = transformers.MODEL_MAPPING[type(config)]
        body, told = made.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"hf:{name}: expected a vision transformer that {_library('transformers')} knows, found model_type {kind}: "
            f"{said}"
        ) from None
    if not all(hasattr(config, key) for key in ("patch_size", "hidden_size", "num_hidden_layers", "image_size")):
        raise ConfigError(f"hf:{name}: a {config.model_type} has no feature maps here; choose a vision transformer")
    shapes = [str(one[0] if isinstance(one, tuple) else one) for one in told["mismatched_keys"]]
    _fit(f"hf:{name}", sorted(told["missing_keys"]), sorted(told["unexpected_keys"]), shapes)
    return body.float(), config


def _square(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])


def _library(name: str) -> str:
    return f"{name} {version(name)}"


def _family(name: str) -> Callable[[str, bytes], Network]:
    family = name.partition(":")[0]
    if family not in _FAMILIES:
        raise ConfigError(f"model.backbone: expected one of {', '.join(f'{one}:' for one in _FAMILIES)}, found {name}")
    return _FAMILIES[family]


_FAMILIES: dict[str, Callable[[str, bytes], Network]] = {"timm": _Timm, "hf": _HuggingFace}
