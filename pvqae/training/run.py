"""What one fit is made of, and how far it is."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvqae.core import config, runtime, seeding
from pvqae.features.examples import Batch, Learned
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder, Output
from pvqae.model.backbones import Backbone, Features, on_grid
from pvqae.training.discriminator import Discriminator
from pvqae.training.losses import ERRORS, LOSSES


@dataclass
class Run:
    """The state of a fit: modules, optimisers, and small facts that a checkpoint keeps."""

    autoencoder: Autoencoder
    backbone: Backbone | None  # only if it is trained
    discriminator: Discriminator | None
    optimisers: dict[str, torch.optim.Optimizer]
    params: config.Params
    plan: runtime.Plan
    name: str  # full, or fold-k: part of every random draw
    facts: dict[str, Any] = field(default_factory=lambda: {"step": 0, "kappa": 0.0, "ramp": 0.0, "spent": 1.0})

    @property
    def modules(self) -> nn.ModuleDict:
        """Everything with weights, by the names that weights files use."""
        named = {"autoencoder": self.autoencoder, "backbone": self.backbone, "discriminator": self.discriminator}
        return nn.ModuleDict({name: module for name, module in named.items() if module is not None})

    def features(self, batch: Batch) -> Features:
        """Cached where the backbone is frozen, computed (with gradient) where it is trained."""
        if batch.features is not None:
            return batch.features
        assert self.backbone is not None
        features: Features = self.backbone(batch.images)
        return features

    def reconstruction_loss(self, output: Output, features: Features, batch: Batch) -> Tensor:
        target = self.autoencoder.standardised_target(features)
        valid = on_grid(batch.valid, target.shape[-2:])
        spec = self.autoencoder.spec
        return LOSSES[spec.decoder](output.reconstruction, target, valid, spec.groups)

    def cell_errors(self, output: Output, features: Features) -> Tensor:
        """The reconstruction loss under each coarse cell, B x h x w."""
        spec = self.autoencoder.spec
        target = self.autoencoder.standardised_target(features)
        errors = ERRORS[spec.decoder](output.reconstruction, target, spec.groups)
        height, width = output.allocation.onehot.shape[-2:]
        return F.adaptive_avg_pool2d(errors[:, None], (height, width))[:, 0]


def start(params: config.Params, plan: runtime.Plan, name: str) -> Run:
    """A run at step 0. All weights, those of a trained backbone too, are drawn from the seed and the run's name."""
    seeding.initialise(params.seed, "weights", name)
    backbone = backbones.make(params.model)
    autoencoder = Autoencoder(params.model, backbone.spec)
    trained = None if backbone.spec.frozen else backbone
    modules = nn.ModuleList([autoencoder] if trained is None else [autoencoder, trained])
    modules.to(plan.device)
    optimisers: dict[str, torch.optim.Optimizer] = {"optimiser": _adam(modules, params.train)}
    critic = None
    if params.train.adversarial and backbone.spec.decoder == "pixels":
        critic = Discriminator(params.model.width).to(plan.device)
        optimisers["discriminator"] = _adam(critic, params.train)
    run = Run(autoencoder, trained, critic, optimisers, params, plan, name)
    run.modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return run


def _adam(module: nn.Module, train: config.Train) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=train.lr, betas=(0.9, 0.99), weight_decay=1e-4)


def fit_scales(run: Run, examples: Learned) -> None:
    """Per-channel scales of frozen features from a few hundred views; pixels need none."""
    if run.backbone is not None:
        return
    batch = examples.batch(spread(len(examples), 256), run.plan.device)
    assert batch.features is not None
    for scale, x in zip(run.autoencoder.scales, batch.features.levels, strict=True):
        scale.fit(x, on_grid(batch.valid, x.shape[-2:]))
    target = batch.features.target
    run.autoencoder.scale_target.fit(target, on_grid(batch.valid, target.shape[-2:]))


def spread(count: int, most: int) -> Tensor:
    """At most `most` indices spread evenly over `count` views."""
    return torch.linspace(0, count - 1, min(most, count)).long()
