"""Steps of training: the paper's own backbone against a plain one, kept features against none, two against one.

B images; S side.
"""

import multiprocessing
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flows.experiments.trial import BenchmarkContext
from pvqae.core import config, runtime
from pvqae.features.examples import Batch
from pvqae.inference.scoring import through
from pvqae.model import layers
from pvqae.model.layers import _PixelDecoder
from pvqae.samples import geometry, images
from pvqae.training import loop, losses
from pvqae.training.run import start
from tests.bench.rows import Row, Size, at_least, at_most, seconds, side_by_side
from tests.bench.subject import context, params


class Plain(nn.Module):
    """A VQ-GAN-style autoencoder of plain modules with our widths: encoder, codebook on the finest grid, decoder."""

    def __init__(self, model: config.Model):
        super().__init__()
        self.encoder = layers.Encoder(model.width, model.levels)
        self.to_codes = nn.ModuleList(nn.Conv2d(c, model.code_dim, 1) for c in self.encoder.channels)
        self.codes = nn.Embedding(model.codes, model.code_dim)
        self.decoder = _PixelDecoder(model.code_dim, model.width, 3, model.levels)

    def forward(self, x_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and the loss of both sides of the codebook."""
        levels = [to(x) for to, x in zip(self.to_codes, self.encoder(x_B3SS), strict=True)]
        z = sum(F.interpolate(x, levels[-1].shape[-2:]) for x in levels)
        flat = z.movedim(1, -1).flatten(0, 2)
        chosen = self.codes(torch.cdist(flat, self.codes.weight).argmin(1))
        loss = F.mse_loss(flat, chosen.detach()) * 0.25 + F.mse_loss(flat.detach(), chosen)
        straight = (flat + (chosen - flat).detach()).view(z.movedim(1, -1).shape).movedim(-1, 1)
        return self.decoder(straight), loss


def plain_step(model: Plain, optimiser: torch.optim.Optimizer, batch: Batch) -> None:
    out, loss = model(batch.images)
    total = loss + losses._pixel_loss(out, batch.images, batch.valid, (3,))
    optimiser.zero_grad()
    total.backward()
    optimiser.step()


class Fixed:
    """Always the same batch: reading is not what is timed."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.valid)

    def batch(self, indices: Tensor, device: str = "cpu") -> Batch:
        return self._batch


def vqgan_step(size: Size) -> list[Row]:
    """One step of the paper's backbone, from pixels to weights, against a plain float32 one of the same widths."""
    side, count = size.of(64, 256), size.of(2, 4)
    found = params(False, "model.backbone=vqgan", f"image.size={side}", f"train.batch={count}", "train.kappa=0.1")
    plan = runtime.plan(found.compute, 1)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, side, side, generator=draws)
    batch = Batch(pixels, None, torch.rand(count, side // 32, side // 32, generator=draws), pixels[:, 0] >= 0)
    run = start(found, plan, "full")
    run.autoencoder.codebook.start(torch.randn(found.model.codes, found.model.code_dim, generator=draws))
    plain = Plain(found.model)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=found.train.lr)
    ours, theirs = side_by_side(
        partial(loop._step, run, Fixed(batch), found.train.steps // 2),
        partial(plain_step, plain, optimiser, batch),
        size.of(1, 7),
    )
    what = f"`vqgan` training step, {count} images of {side} px, with router, budget and codebook"
    against = f"plain float32 VQ-GAN step without them, {theirs:.2f} s"
    floor = at_least(theirs / ours, 1.8 if plan.precision == "bf16" else 1.2)
    return [Row(what, f"{ours:.2f} s", against, theirs / ours, *floor, plan.precision)]


def frozen(size: Size) -> list[Row]:
    """The same steps with kept features, and with every batch decoded and pushed through the backbone again: after
    every step the weights are the same, so each AUROC is reached at the same step."""
    found = context("bottle", size.quick)
    params, paths = found.params, _paths(found)
    run = start(params, runtime.plan(params.compute, 1), "full")
    run.fit_scales(found.examples)
    steps, batch = size.of(2, 6), params.train.batch
    kept = seconds(lambda: [loop._step(run, found.examples, step) for step in range(steps)]) / steps
    read = seconds(lambda: [_read(found, paths[i % len(paths)]) for i in range(size.of(4, 2 * batch))])
    uncached = kept + read / size.of(4, 2 * batch) * batch
    once = read / size.of(4, 2 * batch) * len(paths)
    whole, other = once + params.train.steps * kept, params.train.steps * uncached
    what = f"{found.subject.name}: {params.train.steps} steps from {len(paths)} images, each read once"
    against = f"features recomputed every epoch, {other:.0f} s"
    note = f"a step {kept * 1e3:.0f} ms, reading its batch {(uncached - kept) * 1e3:.0f} ms"
    return [Row(what, f"{whole:.0f} s", against, other / whole, *at_least(other / whole, 4), note)]


def _paths(found: BenchmarkContext) -> list[Path]:
    return [found.subject.root / found.normals["path"].iloc[int(row)] for row in found.examples.rows]


def _read(found: BenchmarkContext, path: Path) -> None:
    through(found.backbone, geometry.canvas(images.read(path), found.params.image))


def whole(size: Size) -> list[Row]:
    """From a class's image files to a scorer that is ready: reading, network, prior, memory, read-out."""
    threads = os.cpu_count() or 1
    found = context("bottle", size.quick, f"compute.threads={threads}", *(("train.steps=4",) if size.quick else ()))
    with tempfile.TemporaryDirectory() as work:
        fresh = replace(found, work=Path(work))
        took = seconds(lambda: fresh.scorer())
    what = f"{found.subject.name}: files to a fitted scorer, {len(found.normals)} normals, {threads} threads"
    return [Row(what, f"{took:.0f} s", "", None, *at_most(took, 60, " s"))]


def fan_out(size: Size) -> list[Row]:
    """Two classes from their files to fitted scorers: side by side with a thread each, against one after the other with
    both cores."""
    cores = 2
    both = max(_made(1, size.quick, together=True))
    alone = sum(_made(cores, size.quick, together=False))
    what = f"two classes, files to fitted scorers: {cores} processes of one thread"
    against = f"one after the other with {cores} threads, {alone:.0f} s"
    return [Row(what, f"{both:.0f} s", against, alone / both, *at_least(alone / both, 1.25))]


def _made(threads: int, quick: bool, together: bool) -> list[float]:
    """Seconds of each class, without the imports; every one in a process of its own, as the flows do it."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2 if together else 1, maxtasksperchild=1) as pool:
        return pool.starmap(_make, [(name, threads, quick) for name in ("brick", "gravel")], chunksize=1)


def _make(name: str, threads: int, quick: bool) -> float:
    found = context(name, quick, f"compute.threads={threads}", *(("train.steps=4",) if quick else ()))
    with tempfile.TemporaryDirectory() as work:
        return seconds(lambda: replace(found, work=Path(work)).scorer())
