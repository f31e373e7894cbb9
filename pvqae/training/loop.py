"""The one training loop: warm-up, quantisation, budget (METHOD section 3). Read it top to bottom."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvqae.core import runtime
from pvqae.core.progress import track
from pvqae.features.examples import Batch, Learned
from pvqae.model.autoencoder import Output
from pvqae.model.backbones import on_grid
from pvqae.model.codebook import usage
from pvqae.training import checkpoint, losses, phases
from pvqae.training import discriminator as gan
from pvqae.training.run import Run, fit_scales


def fit(run: Run, examples: Learned, folder: Path, what: str) -> None:
    """Train to the last step. Resumes from a checkpoint in `folder`, appends to `folder/progress.jsonl`."""
    train, file = run.params.train, folder / "checkpoint.safetensors"
    found = checkpoint.restore(file, run.modules, run.optimisers)
    run.facts |= found or {}
    if found:
        print(f"{what}: resumed at step {run.facts['step']} of {train.steps}", flush=True)
    elif not run.autoencoder.codebook.started:  # a warm start brings its scales and its codebook
        fit_scales(run, examples)
    history = checkpoint.History(folder / "progress.jsonl", before=run.facts["step"])
    timer, warm = checkpoint.Timer(), phases.warmup_steps(train)

    remaining = range(run.facts["step"], train.steps)
    for step in track(remaining, what, total=train.steps, start=run.facts["step"]):
        if step == warm and not run.autoencoder.codebook.started:
            phases.begin_quantisation(run, examples)
        if phases.balances(train, step):
            phases.balance_budget(run, examples)
        phase = "warmup" if step < warm else "quantised"
        history.append({"phase": phase, "fold": run.name, "step": step} | _step(run, examples, step))
        run.facts["step"] = step + 1
        if timer.due() or step + 1 in (warm, train.steps):
            checkpoint.save(file, run.modules, run.optimisers, run.facts)


def _step(run: Run, examples: Learned, step: int) -> dict[str, Any]:
    for group in (g for optimiser in run.optimisers.values() for g in optimiser.param_groups):
        group["lr"] = phases.learning_rate(run.params.train, step)
    batch = examples.batch(phases.order(run, len(examples), step), run.plan.device)
    batch = phases.maybe_flip(run, batch, step)
    weight = phases.budget_weight(run, step)

    with runtime.autocast(run.plan):
        features = run.features(batch)
        codes = run.autoencoder.codes(features)
        coarse = on_grid(batch.valid, codes[0].shape[-2:])
        allocation = phases.allocate(run, codes, coarse, step)
        output = run.autoencoder.decode(codes, allocation, on_grid(batch.valid, features.levels[-1].shape[-2:]))
    reconstruction = run.reconstruction_loss(output, features, batch)
    loss = reconstruction + output.commitment + weight * losses.budget_loss(allocation.onehot, batch.cost, coarse)
    if run.discriminator is not None and step >= phases.warmup_steps(run.params.train):
        loss, extra = _adversarial(run, run.discriminator, output, batch, reconstruction, loss, step)
    else:
        extra = {}
    _descend(run.optimisers["optimiser"], loss)
    if run.autoencoder.codebook.started:
        run.autoencoder.codebook.update(output.merged.detach(), output.indices)

    run.facts["spent"] = float(losses.spend(allocation.onehot.detach(), coarse))
    values = {"loss": loss.item(), "reconstruction": reconstruction.item(), "commitment": output.commitment.item()}
    return values | {"budget_weight": weight, "spent": run.facts["spent"]} | _health(run, output, coarse) | extra


def _adversarial(
    run: Run, critic: gan.Discriminator, output: Output, batch: Batch, reconstruction: Tensor, loss: Tensor, step: int
) -> tuple[Tensor, dict[str, float]]:
    """The discriminator trains from the end of warm-up on, and is used in the second half only (paper; the delay is
    ours: an untrained critic ruins reconstructions)."""
    fake = output.reconstruction.float()
    judged = gan.hinge(critic(batch.images), critic(fake.detach()))
    _descend(run.optimisers["discriminator"], judged)
    if step < run.params.train.steps // 2:
        return loss, {"discriminator": judged.item(), "adversarial_weight": 0.0}
    fooled = gan.adversarial(critic(fake))
    weight = gan.adaptive_weight(reconstruction, fooled, run.autoencoder.decoder.get_parameter("output.weight"))
    return loss + weight * fooled, {"discriminator": judged.item(), "adversarial_weight": weight.item()}


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()


def _health(run: Run, output: Output, coarse: Tensor) -> dict[str, float]:
    """Level shares of the router's own choice, and codebook usage, of this batch."""
    logits = output.allocation.logits
    shares = torch.bincount(logits.argmax(1)[coarse], minlength=logits.shape[1]).float() / coarse.sum()
    used, perplexity = usage(output.indices, run.params.model.codes) if run.autoencoder.codebook.started else (0.0, 0.0)
    values = {"codebook_usage": used, "perplexity": perplexity}
    return values | {f"share_{level}": share for level, share in enumerate(shares.tolist())}
