"""From the bytes of an image to its decision, compared with PatchCore on the same features.

K patches of a bank; C channels of a patch.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from flows.experiments import trial
from flows.experiments.baselines import PatchCore, patches_of
from flows.experiments.trial import BenchmarkContext
from pvqae.core.config import Model
from pvqae.inference import bundle
from pvqae.inference.measures import measure
from pvqae.inference.scoring import Scorer, through
from pvqae.model import backbones
from pvqae.samples import geometry, images
from tests.bench import holding
from tests.bench.rows import Row, Size, at_least, at_most, seconds
from tests.bench.subject import BRIEF, context

UNUSED = {"threshold": 0.0, "map_threshold": 0.0, "map_scale": [0.0, 1.0]}  # a card, for a bundle to be whole
SHARES = {"1 %": 0.01, "10 %": 0.10}


def bank(found: BenchmarkContext, share: float) -> PatchCore:
    """PatchCore's bank with patches drawn at random: what a look-up costs depends on their number, not on which."""
    every = patches_of(found.examples)
    drawn = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[: round(share * len(every))]
    return PatchCore(torch.zeros(every.shape[1]), torch.ones(every.shape[1]), every[drawn].float())


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, one after the other again and again, after a warm-up."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: median(values) for name, values in times.items()}


def latency(size: Size) -> list[Row]:
    """Batch 1 and 32, on a small class and on the one with most normals."""
    rows: list[Row] = []
    for name in ("bottle",) if size.quick else ("bottle", "magnetic_tile"):
        rows += _latency(size, name)
    return rows


def _latency(size: Size, name: str) -> list[Row]:
    found = context(name, size.quick, *BRIEF)
    ours = found.scorer()
    files = [found.subject.root / path for path in found.test["path"]]
    many = [files[i % len(files)] for i in range(size.of(2, 32))]
    banks = {label: bank(found, share) for label, share in SHARES.items()}

    def theirs(one: PatchCore, path: Path) -> object:
        canvas = geometry.canvas(images.read(path), found.params.image)
        return one.score(*through(found.backbone, canvas), canvas, "")

    def by(score: Callable[[Path], object], paths: list[Path]) -> Callable[[], list[object]]:
        return lambda: [score(path) for path in paths]

    def decide(path: Path) -> bool:
        scored = ours.one(images.read(path))
        return bool(scored.image_score > 0) and scored.anomaly_map.size > 0

    rows = []
    for paths, repeats in ((many[:1], size.of(1, 15)), (many, size.of(1, 3))):
        calls = {"ours": by(decide, paths)} | {
            label: by(lambda path, one=one: theirs(one, path), paths) for label, one in banks.items()
        }
        took = in_turns(calls, repeats)
        for label, ceiling in (("1 %", 1.0), ("10 %", 0.25)):
            ratio = took["ours"] / took[label]
            what = f"{found.subject.name}: file to decision and map, {len(paths)} image(s)"
            against = f"PatchCore {label} of {len(banks[label].bank)} patches, {took[label] * 1e3:.0f} ms"
            rows.append(Row(what, f"{took['ours'] * 1e3:.0f} ms", against, ratio, *at_most(ratio, ceiling, "×")))
    return rows + _sizes(found, ours, banks)


def _sizes(found: BenchmarkContext, ours: Scorer, banks: dict[str, PatchCore]) -> list[Row]:
    size = trial.megabytes(ours, found.params, {})
    large = banks["10 %"].megabytes
    what = f"{found.subject.name}: bundle of a class beyond the shared backbone"
    bank10, many = f"PatchCore 10 %, {large:.1f} MB", found.subject.name == "magnetic_tile"
    return [
        Row(what, f"{size:.2f} MB", "", None, *at_most(size, 2.5, " MB")),
        Row(what, f"{size:.2f} MB", bank10, size / large, *(at_most(size / large, 0.1, "×") if many else ("", None))),
    ]


def share(size: Size) -> list[Row]:
    """Where the time of one image goes."""
    found = context("bottle", size.quick, *BRIEF)
    ours = found.scorer()
    path = found.subject.root / found.test["path"].iloc[0]
    pixels = images.read(path)
    canvas = geometry.canvas(pixels, ours.image)
    features, valid = through(ours.networks.backbone, canvas)
    raw = measure(ours.networks, features, valid)
    took = in_turns(
        {
            "decode": lambda: images.read(path),
            "resize": lambda: geometry.canvas(pixels, ours.image),
            "backbone": lambda: through(ours.networks.backbone, canvas),
            "measures": lambda: measure(ours.networks, features, valid),
            "read-out": lambda: ours.finish(raw, canvas, "").anomaly_map,
        },
        size.of(1, 25),
    )
    whole = sum(took.values())
    outside, reading = 1 - took["backbone"] / whole, (took["decode"] + took["resize"]) / whole
    each = "ms: " + ", ".join(f"{name} {value * 1e3:.1f}" for name, value in took.items())
    total = f"{whole * 1e3:.0f} ms in all"
    return [
        Row(
            "scoring outside the frozen backbone",
            f"{outside:.0%}",
            total,
            None,
            *at_most(100 * outside, 40, " %"),
            each,
        ),
        Row("decode + resize, of scoring", f"{reading:.0%}", total, None, *at_most(100 * reading, 40, " %")),
    ]


def compiled(size: Size) -> list[Row]:
    """The backbone's compiled form beside the same network in PyTorch: one view on one thread, then many on all."""
    backbone = backbones.make(Model()).eval()
    every, rows = torch.get_num_threads(), []
    for views, threads in ((1, 1), (size.of(2, 32), every)):
        pixels = torch.rand(views, 3, size.of(64, 320), size.of(64, 320)).contiguous(memory_format=torch.channels_last)
        torch.set_num_threads(threads)
        took = in_turns(
            {
                "compiled": lambda pixels=pixels: backbone.run(pixels),
                "torch": lambda pixels=pixels: backbone.network(pixels, backbone.taps, backbone.targets),
            },
            size.of(1, 15),
        )
        what = f"frozen network, {views} views of 320 px, {threads} threads: {backbone.engine}"
        ours, theirs = took["compiled"], took["torch"]
        ratio = theirs / ours
        against = f"torch {torch.__version__}, {theirs * 1e3:.0f} ms"
        rows.append(Row(what, f"{ours * 1e3:.0f} ms", against, ratio, *at_least(ratio, 2)))
    torch.set_num_threads(every)
    return rows


def memory(size: Size) -> list[Row]:
    """Resident memory above a process that holds only the backbone: ours, and the 10 % bank's."""
    found = context("magnetic_tile", size.quick, *BRIEF)
    path = found.subject.root / found.test["path"].iloc[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        bundle.save(folder, found.scorer(), found.params, found.subject.name, {}, UNUSED)
        one = bank(found, SHARES["10 %"])
        save_file({"mean": one.mean, "deviation": one.deviation, "bank": one.bank.half()}, folder.with_name("bank"))
        ours, theirs = (holding.measured(kind, folder.with_name(kind), path) for kind in ("bundle", "bank"))
    against = f"PatchCore 10 %, {theirs / 1e6:.0f} MB"
    what = f"{found.subject.name}: peak of memory above the backbone's while scoring"
    return [Row(what, f"{ours / 1e6:.0f} MB", against, ours / theirs, *at_most(ours / theirs, 0.5, "×"))]
