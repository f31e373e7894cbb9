"""Which fixed read-out real defects prefer: every candidate on every class, each class left out of its own choice.

A look at test sets, and said to be one wherever its figures are shown. Nothing is trained: memories and statistics of
normals are fitted once per class and seed, and read out in every way. n test images.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flows.experiments import subjects
from flows.experiments.subjects import Subject, key_of, source_of
from flows.experiments.trial import BenchmarkContext
from pvqae.calibration import fitting, normals
from pvqae.core import config
from pvqae.core.files import write_text
from pvqae.core.progress import track
from pvqae.datasets import splits
from pvqae.evaluation.metrics import Floats, PixelMetrics, image_auroc
from pvqae.inference import measures, scoring
from pvqae.inference.scoring import Readout, Scorer
from pvqae.samples import geometry

_CHUNK = 16
_F, _M, _C, _J, _P = "stride8", "stride16", "stride32", "joint", "place"
_MIXES: tuple[dict[str, float], ...] = (
    {_F: 1, _M: 1, _C: 1},
    {_J: 1},
    {_J: 1, _F: 1},
    {_J: 2, _M: 1},
    {_J: 4, _M: 2, _C: 1},
    {_J: 2, _M: 2, _C: 1},
    {_J: 4, _M: 2, _F: 1},
    {_J: 2, _M: 1, _F: 1},
    {_J: 2, _F: 1, _M: 1, _C: 1},
    {_P: 1},
    {_J: 2, _M: 1, _F: 1, _P: 1},
    {_J: 2, _M: 1, _F: 1, _P: 2},
    {_J: 2, _M: 1, _F: 1, _P: 4},
    {_J: 2, _M: 2, _C: 1, _P: 2},
)
_MAPS: tuple[dict[str, float], ...] = (
    {_F: 1},
    {_J: 1},
    {_J: 1, _F: 1},
    {_J: 2, _F: 2, _C: 1},
    {_J: 4, _F: 4, _M: 1},
    {_P: 1},
    {_J: 1, _P: 1},
    {_F: 1, _P: 1},
    {_J: 1, _F: 1, _P: 1},
    {_J: 1, _F: 1, _P: 2},
    {_J: 4, _F: 4, _M: 1, _P: 8},
)
_MAP_SCALES = ("location", "global", "least")
_PIXELS = ("pixel_auroc", "aupro", "aupro_05")
USES: dict[str, tuple[str, ...]] = {"image": ("image_auroc",), "map": _PIXELS}  # figures that a choice goes by
_SOURCES = (
    *subjects.VIEW_SOURCES,
    "pvqae/calibration/fitting.py",
    "pvqae/calibration/normals.py",
    "pvqae/inference/measures.py",
    "pvqae/inference/scoring.py",
)


def _name(use: Readout) -> str:
    return " + ".join(f"{weight:g} {memory}" for memory, weight in use.weights.items()) + f", {use.scale}"


FOR_IMAGE = {_name(use): use for use in (Readout(mix, scale) for mix in _MIXES for scale in scoring.SCALES)}
FOR_MAP = {_name(use): use for use in (Readout(mix, scale) for mix in _MAPS for scale in _MAP_SCALES)}


def run(found: Sequence[Subject], params: config.Params, seeds: Sequence[int], work: Path) -> pd.DataFrame:
    """Return a row per class, seed, use (image or map) and read-out with its figures; finished classes are kept."""
    rows: list[dict[str, object]] = []
    for subject in found:
        for seed in seeds:
            context = BenchmarkContext(subject, params.model_copy(update={"seed": seed}), work)
            rows += _kept(context, work / "readouts")
    return pd.DataFrame(rows)


def _kept(context: BenchmarkContext, folder: Path) -> list[dict[str, object]]:
    params, samples = context.params, context.subject.rows[["sample_id", "sha256", "split"]].values.tolist()
    sections = params.model_dump(mode="json", include={"seed", "image", "model", "memory", "score", "calibration"})
    key = key_of(samples, sections, [*FOR_IMAGE], [*FOR_MAP], source_of(*_SOURCES))
    file = folder / f"{context.subject.name}-{params.seed}-{key}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(list(_measured(context)), indent=1) + "\n")
    found: list[dict[str, object]] = json.loads(file.read_text("utf-8"))
    return found


@dataclass(frozen=True, eq=False)
class _Seen:
    scores: dict[str, list[float]]
    pixels: dict[str, PixelMetrics]


def _measured(context: BenchmarkContext) -> Iterator[dict[str, object]]:
    scorer, masks = _fitted(context), context.test["mask_path"].fillna("").astype(bool).any()
    seen = _Seen({name: [] for name in FOR_IMAGE}, {name: PixelMetrics() for name in FOR_MAP} if masks else {})
    views = subjects.each_image(context.unseen, context.test, context.params.image)
    label = f"{context.subject.name}, seed {context.params.seed}"
    for one, row in zip(track(views, label, len(context.test)), context.test.itertuples(), strict=True):
        raw = measures.measure(scorer.networks, one.features, one.valid)
        for name, use in FOR_IMAGE.items():
            recon = scorer.recon_map(raw, use)
            seen.scores[name].append(scoring.top_mean(recon[raw.cells], scorer.score.top, len(recon)))
        if not masks:
            continue
        mask = geometry.mask_of(str(row.mask_path or ""), (one.canvas.height, one.canvas.width), context.subject.root)
        for name, use in FOR_MAP.items():
            drawn = one.canvas.stitch(scorer.smooth(scorer.recon_map(raw, use)))
            seen.pixels[name].add(drawn, mask)
    about = {"class": context.subject.name, "seed": context.params.seed}
    for name, scores in seen.scores.items():
        yield {**about, "use": "image", "readout": name, "image_auroc": image_auroc(context.defect, np.array(scores))}
    for name, pixels in seen.pixels.items():
        figures = dict(zip(_PIXELS, (pixels.auroc(), pixels.aupro(), pixels.aupro(0.05)), strict=True))
        yield {**about, "use": "map", "readout": name, **figures}


def untrained(context: BenchmarkContext, params: config.Params) -> measures.Networks:
    """Return the memories that `params.score` reads, without a network: nothing asks it."""
    backbone, examples = context.backbone, context.examples
    groups = fitting.group_numbers(context.normals, examples)
    memories = fitting.fit_memories(backbone, examples, groups, params, splits.FULL)
    return measures.Networks(backbone, None, memories, None)


def _fitted(context: BenchmarkContext) -> Scorer:
    """Return a scorer with every memory that a candidate reads."""
    every = dict.fromkeys((_C, _M, _F, _J, _P), 1.0)
    score = context.params.score.model_copy(update={"image": every, "map": every})
    networks = untrained(context, context.params.model_copy(update={"score": score}))
    groups, raws = fitting.group_numbers(context.normals, context.examples), []
    for indices, batch in context.examples.batches(_CHUNK):
        assert batch.features is not None, "read-outs are of frozen features"
        raws.append(measures.measure(networks, batch.features, batch.valid, groups[indices]))
    found = {
        name: normals.fit_statistics(torch.cat([r.maps[name] for r in raws]), torch.cat([r.valid[name] for r in raws]))
        for name in raws[0].maps
    }
    return Scorer(networks, found, {}, context.params.image, score)


def about(params: config.Params, seeds: Sequence[int]) -> str:
    """Say what the page's figures are of."""
    shown = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"
    return (
        f"`python -m flows bench readouts`, split test, {params.image.size} px, {params.memory.codes} codes a "
        f"memory, {params.memory.neighbours} neighbours, {shown}, nothing trained. Every figure is a look at test "
        "sets; the class that is left out judges what the others chose."
    )


def page(found: pd.DataFrame, facts: str) -> str:
    """Return the page: what was left out in turn, and every candidate."""
    return "\n".join(["# Which read-out do real defects prefer?", "", facts, "", *sections(found)]).rstrip() + "\n"


def sections(found: pd.DataFrame) -> list[str]:
    """Return the lines of the page's sections on images and maps, from the columns class, use, readout and figures."""
    lines = []
    for use, shown in USES.items():
        own = found[found["use"] == use]
        if own.empty:
            continue
        names, classes, values = table(own, shown)
        turns = [*_left_out(names, classes, values, shown), ""] if len(classes) > 1 else []
        lines += [f"## {use.capitalize()}", "", *turns, *_every(names, classes, values, shown), ""]
    return lines


def table(own: pd.DataFrame, shown: tuple[str, ...]) -> tuple[list[str], list[str], Floats]:
    """Return read-outs, classes, and means over seeds, figures x read-outs x classes."""
    pivots = [own.pivot_table(figure, "readout", "class", sort=False) for figure in shown]
    names, classes = [str(x) for x in pivots[0].index], [str(x) for x in pivots[0].columns]
    return names, classes, np.stack([pivot.to_numpy(np.float64) for pivot in pivots])


def choices(values: Floats) -> list[int]:
    """Return the read-out that the other classes choose, class by class; `values` as of `table`."""
    return [int(np.delete(_merit(values), c, axis=1).mean(1).argmax()) for c in range(values.shape[2])]


def _merit(values: Floats) -> Floats:
    """Return what a choice goes by, the sum of all figures that are shown; read-outs x classes."""
    return np.asarray(values.sum(0))


def _left_out(names: list[str], classes: list[str], values: Floats, shown: tuple[str, ...]) -> list[str]:
    """Let each class judge what the other classes chose; the last line is what all of them choose.

    `values`: figures x read-outs x classes.
    """
    lines = [f"| left out | chosen by the others | {' | '.join(shown)} |", "|" + "---|" * (2 + len(shown))]
    reached = []
    for number, (name, chosen) in enumerate(zip(classes, choices(values), strict=True)):
        reached.append(values[:, chosen, number])
        lines.append(f"| {name} | {names[chosen]} | {_cells(reached[-1], 4)} |")
    lines.append(f"| mean | | {_cells(np.mean(reached, axis=0), 4)} |")
    best = int(_merit(values).mean(1).argmax())
    return [*lines, f"| none | {names[best]} | {_cells(values[:, best].mean(1), 4)} |"]


def _every(names: list[str], classes: list[str], values: Floats, shown: tuple[str, ...]) -> list[str]:
    lines = [f"| read-out | {' | '.join(classes)} | mean |", "|" + "---|" * (2 + len(classes))]
    for row in np.argsort(-_merit(values).mean(1), kind="stable"):
        each = [_cells(values[:, row, number], 3, " / ") for number in range(len(classes))]
        lines.append(f"| {names[row]} | {' | '.join(each)} | {_cells(values[:, row].mean(1), 4, ' / ')} |")
    return [f"Every candidate, {' / '.join(shown)}:", "", *lines]


def _cells(numbers: Floats, digits: int, between: str = " | ") -> str:
    return between.join(f"{x:.{digits}f}" for x in numbers)
