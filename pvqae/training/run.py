"""One fit as it is trained: its modules and optimisers, its checkpoint on disk.

A checkpoint is one safetensors file without pickle and without random state: randomness comes from the seed and the
step (`pvqae.core.seeding`), so a resumed run draws what an uninterrupted one draws.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pvqae.core import config, runtime, seeding
from pvqae.core.files import whole_file
from pvqae.core.tensors import checksum, parse_notes, parse_tensors
from pvqae.features.examples import Batch, Learned
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder, Moments, Output
from pvqae.model.backbones import Backbone, Features, on_grid
from pvqae.training.losses import ERRORS, LOSSES, Discriminator, Perceptual

FEW = 8  # views at once where many are looked at and none is learnt from: more would only take memory
_Optimisers = dict[str, torch.optim.Optimizer]


@dataclass
class Run:
    """The state of a fit: modules, optimisers, and small facts that a checkpoint keeps."""

    autoencoder: Autoencoder
    backbone: Backbone | None  # only if it is trained
    discriminator: Discriminator | None
    optimisers: _Optimisers
    params: config.Params
    plan: runtime.Plan
    name: str  # full, or fold-k: part of every random draw
    perceptual: Perceptual | None = None  # frozen: no part of what is trained or kept
    facts: dict[str, Any] = field(default_factory=lambda: {"step": 0, "kappa": 0.0, "ramp": 0.0, "spent": 1.0})

    @property
    def modules(self) -> nn.ModuleDict:
        """Everything with weights, by the names that weights files use."""
        named = {"autoencoder": self.autoencoder, "backbone": self.backbone, "discriminator": self.discriminator}
        return nn.ModuleDict({name: module for name, module in named.items() if module is not None})

    def features(self, batch: Batch) -> Features:
        """Return features that are kept where the backbone is frozen, computed (with gradient) where it is trained."""
        if batch.features is not None:
            return batch.features
        assert self.backbone is not None
        features: Features = self.backbone(batch.images)
        return features

    def reconstruction_loss(self, output: Output, features: Features, batch: Batch) -> Tensor:
        target = self.autoencoder.standardised_target(features)
        valid = on_grid(batch.valid, target.shape[-2:])
        spec = self.autoencoder.spec
        loss = LOSSES[spec.decoder](output.reconstruction, target, valid, spec.groups)
        if self.perceptual is not None:
            loss = loss + self.params.train.perceptual * self.perceptual(output.reconstruction, target, valid)
        return loss

    def cell_errors(self, output: Output, features: Features) -> Tensor:
        """Return the reconstruction loss under each coarse cell, B x h x w."""
        spec = self.autoencoder.spec
        target = self.autoencoder.standardised_target(features)
        errors = ERRORS[spec.decoder](output.reconstruction, target, spec.groups)
        height, width = output.allocation.onehot.shape[-2:]
        return F.adaptive_avg_pool2d(errors[:, None], (height, width))[:, 0]

    def fit_scales(self, examples: Learned) -> None:
        """Fit per-channel scales of frozen features to a few hundred views; pixels need none."""
        if self.backbone is not None:
            return
        scales = [*self.autoencoder.scales, self.autoencoder.scale_target]
        seen = [Moments() for _ in scales]
        for some in torch.split(spread(len(examples), 256), FEW):
            batch = examples.batch(some, self.plan.device)
            assert batch.features is not None
            for moments, x in zip(seen, [*batch.features.levels, batch.features.target], strict=True):
                moments.add(x, on_grid(batch.valid, x.shape[-2:]))
        for scale, moments in zip(scales, seen, strict=True):
            scale.fit(moments)

    def save(self, path: Path) -> None:
        """Write everything that the next step needs."""
        _save_checkpoint(path, self.modules, self.optimisers, self.facts)

    def restore(self, path: Path) -> bool:
        """Go on from a checkpoint; return whether there is a (readable) one."""
        found = _restore_checkpoint(path, self.modules, self.optimisers)
        self.facts |= found or {}
        return bool(found)


def start(params: config.Params, plan: runtime.Plan, name: str) -> Run:
    """Return a run at step 0, all weights (of a trained backbone, too) drawn from the seed and the run's name."""
    seeding.initialise(params.seed, "weights", name)
    backbone = backbones.make(params.model, size=params.image.size)
    autoencoder = Autoencoder(params.model, backbone.spec)
    trained = None if backbone.spec.frozen else backbone
    modules = nn.ModuleList([autoencoder] if trained is None else [autoencoder, trained])
    modules.to(plan.device)
    optimisers: _Optimisers = {"optimiser": _adam(modules, params.train)}
    critic, pixels = None, backbone.spec.decoder == "pixels"
    if params.train.adversarial and pixels:
        critic = Discriminator(params.model.width).to(plan.device)
        optimisers["discriminator"] = _adam(critic, params.train)
    perceptual = Perceptual().to(plan.device) if params.train.perceptual and pixels else None
    run = Run(autoencoder, trained, critic, optimisers, params, plan, name, perceptual)
    run.modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return run


def _adam(module: nn.Module, train: config.Train) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=train.lr, betas=(0.9, 0.99), weight_decay=1e-4)


def spread(count: int, most: int) -> Tensor:
    """Return at most `most` indices spread evenly over `count` views."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def _optimiser_tensors(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{name}.{i}.{key}": torch.as_tensor(value) for i, slot in state.items() for key, value in slot.items()}


def _restore_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(name + "."):
            index, slot = key[len(name) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _save_checkpoint(path: Path, network: nn.Module, optimisers: _Optimisers, facts: dict[str, Any]) -> None:
    """Write everything that the next step needs; `facts` are small JSON values."""
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    for name, optimiser in optimisers.items():
        tensors |= _optimiser_tensors(name, optimiser)
    # Lazy copies: safetensors refuses tensors that share memory, as tied buffers after a first EMA step do.
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(facts)
    with whole_file(path) as part:
        save_file(whole, part, {"facts": text, "sha256": checksum(whole, text)})


def _restore_checkpoint(path: Path, network: nn.Module, optimisers: _Optimisers) -> dict[str, Any] | None:
    """Load into `network` and `optimisers`; the facts, or None where there is no (readable) checkpoint."""
    try:
        data = path.read_bytes()
        tensors, written = parse_tensors(data), parse_notes(data)
        if written["sha256"] != checksum(tensors, written["facts"]):
            return None  # a flipped bit would go on into every later step
        facts = dict(json.loads(written["facts"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # half a file can't be: it is renamed into place; anything else is not ours, begin from the start
    own = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    if _shapes(own) != _shapes(network.state_dict()):
        return None
    network.load_state_dict(own)
    for name, optimiser in optimisers.items():
        _restore_optimiser(name, optimiser, tensors)
    return facts
