"""The one training loop: warm-up, quantisation, budget (METHOD section 3). Read it top to bottom.

What changes over the steps is a function of the step alone, so that a resumed run goes on exactly as an uninterrupted
one: the order of the views, the learning rate, the allocation, the weight of the budget.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvqae.core import config, seeding
from pvqae.core.progress import track
from pvqae.features.examples import Batch, Learned
from pvqae.model.autoencoder import Allocation, Output, as_onehot, usage
from pvqae.model.backbones import Features, on_grid
from pvqae.training import losses
from pvqae.training.losses import Discriminator
from pvqae.training.run import FEW, Run, spread

_MAX_SECONDS = 10.0  # of work that a kill may cost


def fit(run: Run, examples: Learned, folder: Path, what: str, until: int | None = None) -> None:
    """Train to the last step, or to step `until`, where the next call goes on as if nothing had been between.

    Resumes from a checkpoint in `folder`, appends to `folder/progress.jsonl`.
    """
    train, file = run.params.train, folder / "checkpoint.safetensors"
    if run.restore(file):
        print(f"{what}: resumed at step {run.facts['step']} of {train.steps}", flush=True)
    elif not run.autoencoder.codebook.started:  # a warm start brings its scales and its codebook
        run.fit_scales(examples)
    history = _History(folder / "progress.jsonl", before=run.facts["step"])
    timer, warm = _Timer(), _warmup_steps(train)

    last = train.steps if until is None else min(until, train.steps)
    remaining = range(run.facts["step"], last)
    for step in track(remaining, what, total=train.steps, start=run.facts["step"]):
        if step == warm and not run.autoencoder.codebook.started:
            _begin_quantisation(run, examples)
        if _balances(train, step):
            _balance_budget(run, examples)
        phase = "warmup" if step < warm else "quantised"
        history.append({"phase": phase, "fold": run.name, "step": step} | _step(run, examples, step))
        run.facts["step"] = step + 1
        if timer.due() or step + 1 in (warm, last):
            run.save(file)


def _step(run: Run, examples: Learned, step: int) -> dict[str, Any]:
    for group in (g for optimiser in run.optimisers.values() for g in optimiser.param_groups):
        group["lr"] = _learning_rate(run.params.train, step)
    batch = examples.batch(_order(run, len(examples), step), run.plan.device)
    batch = _maybe_flip(run, batch, step)
    weight = _budget_weight(run, step)

    with run.plan.autocast():
        features = run.features(batch)
        codes = run.autoencoder.codes(features)
        coarse = on_grid(batch.valid, codes[0].shape[-2:])
        allocation = _allocate(run, codes, coarse, step)
        output = run.autoencoder.decode(codes, allocation, on_grid(batch.valid, features.levels[-1].shape[-2:]))
    reconstruction = run.reconstruction_loss(output, features, batch)
    loss = reconstruction + output.commitment + weight * losses.budget_loss(allocation.onehot, batch.cost, coarse)
    if run.discriminator is not None and step >= _warmup_steps(run.params.train):
        loss, extra = _adversarial(run, run.discriminator, output, batch, reconstruction, loss, step)
    else:
        extra = {}
    _descend(run.optimisers["optimiser"], loss)
    if run.autoencoder.codebook.started:
        run.autoencoder.codebook.update(output.merged.detach(), output.indices)

    run.facts["spent"] = float(losses.budget_loss(allocation.onehot.detach(), torch.ones_like(batch.cost), coarse))
    values = {"loss": loss.item(), "reconstruction": reconstruction.item(), "commitment": output.commitment.item()}
    return values | {"budget_weight": weight, "spent": run.facts["spent"]} | _health(run, output, coarse) | extra


def _adversarial(
    run: Run,
    critic: Discriminator,
    output: Output,
    batch: Batch,
    reconstruction: Tensor,
    loss: Tensor,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    """Train the discriminator from the end of warm-up on, and use it in the second half only (paper; the delay is ours:
    an untrained critic ruins reconstructions).
    """
    fake = output.reconstruction.float()
    judged = critic.hinge(critic(batch.images), critic(fake.detach()))
    _descend(run.optimisers["discriminator"], judged)
    if step < run.params.train.steps // 2:
        return loss, {"discriminator": judged.item(), "adversarial_weight": 0.0}
    fooled = critic.adversarial(critic(fake))
    weight = critic.adaptive_weight(reconstruction, fooled, run.autoencoder.decoder.get_parameter("output.weight"))
    return loss + weight * fooled, {"discriminator": judged.item(), "adversarial_weight": weight.item()}


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()


def _health(run: Run, output: Output, coarse: Tensor) -> dict[str, float]:
    """Return level shares of the router's own choice, and codebook usage, of this batch."""
    logits = output.allocation.logits
    shares = torch.bincount(logits.argmax(1)[coarse], minlength=logits.shape[1]).float() / coarse.sum()
    used, perplexity = usage(output.indices, run.params.model.codes) if run.autoencoder.codebook.started else (0.0, 0.0)
    values = {"codebook_usage": used, "perplexity": perplexity}
    return values | {f"share_{level}": share for level, share in enumerate(shares.tolist())}


def _warmup_steps(train: config.Train) -> int:
    """Return steps without quantisation and with random allocation; at least the last step quantises."""
    return min(train.steps - 1, round(train.warmup * train.steps))


def _ramp(train: config.Train, step: int) -> float:
    """Rise from 0 at the end of warm-up to 1 at the last step."""
    warm = _warmup_steps(train)
    return max(0.0, (step - warm) / max(1, train.steps - 1 - warm))


def _learning_rate(train: config.Train, step: int) -> float:
    """Rise linearly over the first tenth (at most 30 steps), then fall by half a cosine to 2 % of the peak."""
    rise = max(1, min(30, train.steps // 10))
    if step < rise:
        return train.lr * (step + 1) / rise
    share = (step - rise) / max(1, train.steps - rise)
    return train.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _order(run: Run, count: int, step: int) -> Tensor:
    """Return the views of a step, cut from a stream of whole shuffled passes over all `count` views."""
    size = min(run.params.train.batch, count)
    first, last = step * size // count, (step * size + size - 1) // count
    draws = (seeding.generator(run.params.seed, run.name, "pass", p) for p in range(first, last + 1))
    stream = torch.cat([torch.randperm(count, generator=draw) for draw in draws])
    begin = step * size - first * count
    return stream[begin : begin + size]


def _allocate(run: Run, codes: list[Tensor], valid_Bhw: Tensor, step: int) -> Allocation:
    """Choose levels: random in warm-up, so that every head and the decoder learn; then Gumbel, with some cells random
    to the end: inference feeds the decoder allocations that it did not choose.
    """
    run.autoencoder.router.observe(codes, valid_Bhw)
    train, logits = run.params.train, run.autoencoder.router(codes)
    draws = seeding.generator(run.params.seed, run.name, "allocation", step)
    random = _random_onehot(logits.shape, draws).to(logits.device)
    if step < _warmup_steps(train):
        return Allocation(logits, random)
    hot, cold = train.temperature
    chosen = _gumbel_onehot(logits, hot + (cold - hot) * _ramp(train, step), draws)
    dice = torch.rand(logits[:, :1].shape, generator=draws).to(logits.device) < train.random_cells
    return Allocation(logits, torch.where(dice, random, chosen))


def _random_onehot(shape_BRhw: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a level drawn evenly for every cell."""
    batch, levels, *grid = shape_BRhw
    return as_onehot(torch.randint(levels, (batch, *grid), generator=generator), levels)


def _gumbel_onehot(logits_BRhw: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Sample by hard straight-through Gumbel-softmax: one-hot forward, the soft choice's gradient backward."""
    uniform = torch.rand(logits_BRhw.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(logits_BRhw.device)
    soft = ((logits_BRhw - torch.log(-torch.log(uniform))) / temperature).softmax(dim=1)
    hard = as_onehot(soft.argmax(dim=1), logits_BRhw.shape[1])
    return hard + soft - soft.detach()


@torch.no_grad()
def _begin_quantisation(run: Run, examples: Learned) -> None:
    """Start the codebook by coverage of encoder outputs of every level: it serves all of them."""
    every: dict[int, list[Tensor]] = {}
    for some in torch.split(spread(len(examples), 64), FEW):
        batch = examples.batch(some, run.plan.device)
        features = run.features(batch)
        codes = run.autoencoder.codes(features)
        valid = on_grid(batch.valid, codes[-1].shape[-2:])
        for level in range(len(codes)):
            vectors = run.autoencoder.merged(codes, _at_level(codes, level), valid)
            every.setdefault(level, []).append(vectors)
    vectors = torch.cat([part for level in sorted(every) for part in every[level]])
    run.autoencoder.codebook.start(vectors[:: max(1, len(vectors) // 20000)])


def _forced(run: Run, features: Features, batch: Batch, level: int) -> Output:
    """Return a pass with all cells at one level."""
    valid = on_grid(batch.valid, features.levels[-1].shape[-2:])
    return run.autoencoder.reconstruct(features, valid, _at_level(features.levels, level))


def _at_level(maps: list[Tensor], level: int) -> Tensor:
    """Return the allocation that puts all cells at one level, B x R x h x w, for maps of all levels."""
    onehot = maps[0].new_zeros(len(maps[0]), len(maps), *maps[0].shape[-2:])
    onehot[:, level] = 1
    return onehot


@torch.no_grad()
def _balance_budget(run: Run, examples: Learned) -> None:
    """Put the budget on the scale of what fine codes gain just now, unless params fix kappa."""
    train = run.params.train
    if train.kappa != "auto":
        run.facts["kappa"] = train.kappa
        return
    batch = examples.batch(spread(len(examples), train.batch), run.plan.device)
    features = run.features(batch)
    coarse, fine = (
        run.cell_errors(_forced(run, features, batch, level), features) for level in (0, len(features.levels) - 1)
    )
    valid = on_grid(batch.valid, coarse.shape[-2:])
    gain, cost = (coarse - fine)[valid].cpu(), batch.cost[valid].cpu()
    run.facts["kappa"] = losses.automatic_kappa(gain, cost, losses.PAPER_LAMBDA, len(features.levels))


def _balances(train: config.Train, step: int) -> bool:
    """Return whether the budget is balanced before this step: at the end of warm-up, then about ten times."""
    since = step - _warmup_steps(train)
    return since >= 0 and since % max(1, train.steps // 10) == 0


def _budget_weight(run: Run, step: int) -> float:
    """Return kappa * lambda(t); adaptive schedules read what the last step spent."""
    train = run.params.train
    if step >= _warmup_steps(train):
        schedule = losses.SCHEDULES[train.schedule]
        run.facts["ramp"] = schedule(_ramp(train, step), run.facts["spent"], run.facts["ramp"])
    return float(run.facts["kappa"] * train.lambda_max * run.facts["ramp"])


def _maybe_flip(run: Run, batch: Batch, step: int) -> Batch:
    """Return the batch, or its mirror image on every other draw where params allow it."""
    draw = torch.rand((), generator=seeding.generator(run.params.seed, run.name, "flip", step))
    return batch.mirrored() if run.params.train.horizontal_flip and draw < 0.5 else batch


class _Timer:
    """Says when the next checkpoint is due."""

    def __init__(self, seconds: float = _MAX_SECONDS):
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


class _History:
    """Rows of numbers, one JSON object a line, without wall-clock: the same run writes the same bytes."""

    def __init__(self, path: Path, before: int | None = None):
        """Keep the rows of steps below `before` (a resumed run repeats the others); None keeps none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text("utf-8").splitlines() if path.exists() and before else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] < (before or 0)]
        path.write_text("".join(line + "\n" for line in kept), "utf-8")
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
