"""How training changes over its steps: order of the views, learning rate, allocation, the start of quantisation.

Pure functions of the step, so that a resumed run goes on exactly as an uninterrupted one.
"""

import math

import torch
from torch import Tensor

from pvqae.core import config, seeding
from pvqae.features.examples import Batch, Learned
from pvqae.model.autoencoder import Allocation, Output, gumbel_onehot, random_onehot
from pvqae.model.backbones import Features, on_grid
from pvqae.training import losses
from pvqae.training.run import Run, spread


def warmup_steps(train: config.Train) -> int:
    """Steps without quantisation and with random allocation; at least the last step quantises."""
    return min(train.steps - 1, round(train.warmup * train.steps))


def ramp(train: config.Train, step: int) -> float:
    """0 at the end of warm-up → 1 at the last step."""
    warm = warmup_steps(train)
    return max(0.0, (step - warm) / max(1, train.steps - 1 - warm))


def learning_rate(train: config.Train, step: int) -> float:
    """Linear over the first tenth (at most 30 steps), then half a cosine down to 2 % of the peak."""
    rise = max(1, min(30, train.steps // 10))
    if step < rise:
        return train.lr * (step + 1) / rise
    share = (step - rise) / max(1, train.steps - rise)
    return train.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def order(run: Run, count: int, step: int) -> Tensor:
    """The views of a step, cut from a stream of whole shuffled passes over all `count` views."""
    size = min(run.params.train.batch, count)
    first, last = step * size // count, (step * size + size - 1) // count
    draws = (seeding.generator(run.params.seed, run.name, "pass", p) for p in range(first, last + 1))
    stream = torch.cat([torch.randperm(count, generator=draw) for draw in draws])
    begin = step * size - first * count
    return stream[begin : begin + size]


def allocate(run: Run, codes: list[Tensor], valid_Bhw: Tensor, step: int) -> Allocation:
    """Random in warm-up, so that every head and the decoder learn; then Gumbel, with some cells random to the end:
    inference feeds the decoder allocations that it did not choose."""
    run.autoencoder.router.observe(codes, valid_Bhw)
    train, logits = run.params.train, run.autoencoder.router(codes)
    draws = seeding.generator(run.params.seed, run.name, "allocation", step)
    random = random_onehot(logits.shape, draws).to(logits.device)
    if step < warmup_steps(train):
        return Allocation(logits, random)
    hot, cold = train.temperature
    chosen = gumbel_onehot(logits, hot + (cold - hot) * ramp(train, step), draws)
    dice = torch.rand(logits[:, :1].shape, generator=draws).to(logits.device) < train.random_cells
    return Allocation(logits, torch.where(dice, random, chosen))


@torch.no_grad()
def begin_quantisation(run: Run, examples: Learned) -> None:
    """Start the codebook by coverage of encoder outputs of every level: it serves all of them."""
    batch = examples.batch(spread(len(examples), 64), run.plan.device)
    features = run.features(batch)
    levels = range(len(features.levels))
    vectors = torch.cat([_forced(run, features, batch, level).merged for level in levels])
    run.autoencoder.codebook.start(vectors[:: max(1, len(vectors) // 20000)])


def _forced(run: Run, features: Features, batch: Batch, level: int) -> Output:
    """A pass with all cells at one level."""
    coarsest, levels = features.levels[0], len(features.levels)
    onehot = torch.zeros(len(coarsest), levels, *coarsest.shape[-2:], device=coarsest.device)
    onehot[:, level] = 1
    return run.autoencoder.reconstruct(features, on_grid(batch.valid, features.levels[-1].shape[-2:]), onehot)


@torch.no_grad()
def balance_budget(run: Run, examples: Learned) -> None:
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


def balances(train: config.Train, step: int) -> bool:
    """Whether the budget is balanced before this step: at the end of warm-up, then about ten times."""
    since = step - warmup_steps(train)
    return since >= 0 and since % max(1, train.steps // 10) == 0


def budget_weight(run: Run, step: int) -> float:
    """kappa * lambda(t); adaptive schedules read what the last step spent."""
    train = run.params.train
    if step >= warmup_steps(train):
        schedule = losses.SCHEDULES[train.schedule]
        run.facts["ramp"] = schedule(ramp(train, step), run.facts["spent"], run.facts["ramp"])
    return float(run.facts["kappa"] * train.lambda_max * run.facts["ramp"])


def maybe_flip(run: Run, batch: Batch, step: int) -> Batch:
    """The batch, or its mirror image on every other draw where params allow it."""
    draw = torch.rand((), generator=seeding.generator(run.params.seed, run.name, "flip", step))
    return batch.mirrored() if run.params.train.horizontal_flip and draw < 0.5 else batch
