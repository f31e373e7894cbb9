"""Does the trained mechanism see what distances to normal codes do not? Every fusion of both on real defects.

A signal is what one part of the mechanism says of a cell: S_prior, the decoder's residual, or how unlikely its code is
among those around it (`code_prior`). Each is put in deviations of normals and fused with the shipped memory score in
several ways. `page` lets each class judge what the others chose.

n views, one per image; h w the grid of a signal; H W the finest.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from flows.experiments import bootstrap, code_prior, readouts, subjects, trial
from flows.experiments.bootstrap import Bools, Floats
from flows.experiments.catalogue import with_params
from flows.experiments.code_prior import Facts, Pair
from flows.experiments.page import markdown
from flows.experiments.subjects import Subject, key_of, source_of
from flows.experiments.trial import BenchmarkContext
from pvqae.calibration import fitting
from pvqae.calibration.normals import fit_statistics
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import write_tensors, write_text
from pvqae.core.progress import track
from pvqae.core.tensors import read_tensors
from pvqae.evaluation.metrics import PixelMetrics, image_auroc
from pvqae.features.examples import Examples
from pvqae.inference.measures import Networks, measure
from pvqae.inference.scoring import FUSIONS, SCALES, Normal, blur_all, top_mean
from pvqae.model.backbones import cells_of, repeat_border
from pvqae.samples import geometry

ALONE = "memory alone"
_WEIGHTS = (0.1, 0.3, 1.0)
_CHUNK = 16
_SOURCES = (*trial.SOURCES, "pvqae/calibration", "pvqae/inference")
_OWN = tuple(f"flows/experiments/{name}.py" for name in ("fusion", "code_prior"))


@dataclass(frozen=True)
class Effort:
    """How much is learnt."""

    steps: tuple[int, ...] = (60, 240)  # of a network; each is a training of its own
    codes: code_prior.Effort = field(default_factory=code_prior.Effort)


QUICK = Effort((2,), code_prior.Effort(steps=2, codes=16, cells=500))


_Measures = dict[str, tuple[Pair, Pair]]  # by name: a measure of the normals learnt from, and of the test views
_Found = tuple[_Measures, dict[str, Facts]]


@dataclass(frozen=True, eq=False)
class _Signal:
    """One measure of every test view, or a weighted mean of several."""

    image: Tensor  # n x H x W, in deviations of normals as the image score has them
    map: Tensor  # n x H x W, as the map has them
    relative: Tensor  # n x H x W, over the normal mean, as the image score weights measures
    relative_map: Tensor  # n x H x W, as the map weights them
    scores: Tensor  # n, image scores in deviations of those of normals

    @staticmethod
    def of(
        context: BenchmarkContext, measures: _Measures, image: Mapping[str, float], map_: Mapping[str, float]
    ) -> "_Signal":
        """Put measures in deviations of normals and mix them by two sets of weights."""
        score = context.params.score
        normal = {name: fit_statistics(*seen) for name, (seen, _) in measures.items()}
        grid = _grid(context.params)

        def mixed(which: int, weights: Mapping[str, float], scale: Callable[[Normal, Tensor], Tensor]) -> Tensor:
            parts = {name: (weight, *measures[name][which]) for name, weight in weights.items() if name in measures}
            deviations = (w * _to_grid(repeat_border(scale(normal[n], x), v), grid) for n, (w, x, v) in parts.items())
            return torch.stack(list(deviations)).sum(0) / sum(weight for weight, *_ in parts.values())

        seen = _tops(mixed(0, image, SCALES[score.image_scale]), context.examples, score.top)
        own = mixed(1, image, SCALES[score.image_scale])
        scores = (_tops(own, context.unseen, score.top) - seen.mean()) / seen.std(correction=0).clamp_min(1e-6)
        relative, relative_map = mixed(1, image, _relative), mixed(1, map_, _relative)
        return _Signal(own, mixed(1, map_, SCALES[score.map_scale]), relative, relative_map, scores)


def _relative(normal: Normal, values: Tensor) -> Tensor:
    return values / normal.global_mean.clamp_min(1e-6)


def _grid(params: config.Params) -> tuple[int, int]:
    side = params.image.size // 32 << (params.model.levels - 1)
    return side, side


def _to_grid(maps_nhw: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(maps_nhw[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def _tops(maps_nHW: Tensor, examples: Examples, share: float) -> Tensor:
    """Return the image score of each view's map, n."""
    valid = cells_of(examples.valid, maps_nHW.shape[-2:])
    return torch.tensor([top_mean(one[inside], share) for one, inside in zip(maps_nHW, valid, strict=True)])


def run(
    found: Sequence[Subject], params: config.Params, seeds: Sequence[int], work: Path, effort: Effort
) -> list[dict[str, Any]]:
    """Return what every fusion scores, an entry per seed, class and group of signals; finished ones are kept.

    An entry has the image scores of the test rows by candidate, pixel figures by candidate where there are masks, and
    what the priors over codes learnt. Raises `DataError` where images are tiled.
    """
    if params.image.aspect == "tile":
        raise DataError("image.aspect: expected one view per image, found tile; choose auto, letterbox or squash")
    return [one for seed in seeds for one in _of_seed(found, with_params(params, {"seed": seed}), work, effort)]


def _of_seed(found: Sequence[Subject], params: config.Params, work: Path, effort: Effort) -> Iterator[dict[str, Any]]:
    def contexts() -> Iterator[BenchmarkContext]:
        return (BenchmarkContext(one, params, work) for one in found)

    folder, first = work / "fusion", effort.steps[0]
    folder.mkdir(parents=True, exist_ok=True)
    everybody = key_of([_key(context, first) for context in contexts()], asdict(effort.codes))
    shared = code_prior.Shared(contexts, effort.codes, folder, everybody, params.seed)
    for steps in effort.steps:
        for context in contexts():
            yield _kept(context, f"{steps} steps", _key(context, steps), folder, partial(_of_network, context, steps))
    for context in contexts():  # last: their codebook and the universal prior need the views of every class
        yield _kept(context, "codes", everybody, folder, partial(_of_codes, context, shared, first))


def _key(context: BenchmarkContext, steps: int) -> str:
    samples = context.subject.rows[["sample_id", "sha256", "split"]].values.tolist()
    facts = context.params.model_dump(mode="json", include={*trial.SAVED, "prior", "memory", "score", "calibration"})
    return key_of(samples, facts, steps, source_of(*_SOURCES), source_of(*_OWN))


def _kept(
    context: BenchmarkContext, group: str, key: str, folder: Path, measured: Callable[[], _Found]
) -> dict[str, Any]:
    about = {"class": context.subject.name, "seed": context.params.seed, "group": group}
    file = folder / f"{'-'.join(map(str, about.values())).replace(' ', '-')}-{key}.json"
    if not file.exists():
        measures, facts = measured()
        weight = {name: {name: 1.0} for name in measures}
        signals = {name: _Signal.of(context, measures, weight[name], weight[name]) for name in measures}
        memory = _memory(context, folder)
        figures = {"image": _image_scores(context, memory, signals), "map": _map_figures(context, memory, signals)}
        write_text(file, json.dumps({**about, **figures, "facts": facts}, indent=1) + "\n")
    kept: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return kept


def _memory(context: BenchmarkContext, folder: Path) -> _Signal:
    """Return the shipped score, fitted once for all groups of signals."""
    file = folder / f"memory-{context.subject.name}-{_key(context, 0)}.safetensors"
    if not file.exists():
        networks = readouts.untrained(context, context.params)
        groups = fitting.group_numbers(context.normals, context.examples)
        found = _measured(context, networks, tuple(networks.memories), groups)
        write_tensors(file, vars(_Signal.of(context, found, context.params.score.image, context.params.score.map)))
    return _Signal(**read_tensors(file))


def _of_network(context: BenchmarkContext, steps: int) -> _Found:
    """Return S_prior by both its measures and the decoder's residual, of a network trained for so many steps."""
    trained = _trained(context, steps)
    whitening = fitting.decoder_whitening(trained, context.examples)
    own = replace(trained.allocating(measure="gaussian"), whitening=whitening)
    found = _measured(context, own, ("prior", "decoder"))
    paper = _measured(context, trained.allocating(measure="cross_entropy"), ("prior",))
    named = {"S_prior gaussian": found["prior"], "S_prior cross-entropy": paper["prior"], "decoder": found["decoder"]}
    return {f"{name}, {steps} steps": pairs for name, pairs in named.items()}, {}


def _of_codes(context: BenchmarkContext, shared: code_prior.Shared, steps: int) -> _Found:
    judged = dict(code_prior.judged(context, shared, _trained(context, steps).trained.autoencoder))
    return {n: (one.normals, one.unseen) for n, one in judged.items()}, {n: one.facts for n, one in judged.items()}


def _trained(context: BenchmarkContext, steps: int) -> Networks:
    params = with_params(context.params, {"train.steps": steps})
    return trial.trained(params, context.examples, context.work, context.backbone)


def _measured(
    context: BenchmarkContext, networks: Networks, names: Sequence[str], groups_n: Tensor | None = None
) -> _Measures:
    """Return measures by name, "prior" being the budget's. `groups_n`: see `Memory.distances`, of the normals."""
    normals, unseen = _views(networks, context.examples, names, groups_n), _views(networks, context.unseen, names)
    return {name: (normals[name], unseen[name]) for name in names}


def _views(
    networks: Networks, examples: Examples, names: Sequence[str], groups_n: Tensor | None = None
) -> dict[str, Pair]:
    found: dict[str, list[Pair]] = {name: [] for name in names}
    for indices, batch in examples.batches(_CHUNK):
        assert batch.features is not None, "only frozen features are kept"
        raw = measure(networks, batch.features, batch.valid, None if groups_n is None else groups_n[indices])
        for name, parts in found.items():
            budget = name == "prior"
            parts.append((raw.budget.unlikely, raw.budget.valid) if budget else (raw.maps[name], raw.valid[name]))
    return {name: (torch.cat([x for x, _ in parts]), torch.cat([v for _, v in parts])) for name, parts in found.items()}


def _image_scores(context: BenchmarkContext, memory: _Signal, signals: dict[str, _Signal]) -> dict[str, list[float]]:
    """Return the scores of the test images by candidate."""
    top = partial(_tops, examples=context.unseen, share=context.params.score.top)
    found = {ALONE: memory.scores}
    for name, signal in signals.items():
        found[f"{name} alone"] = signal.scores
        for weight in _WEIGHTS:
            found[f"memory + {weight:g} {name}, cells"] = top(memory.image + weight * signal.image)
            found[f"memory + {weight:g} {name}, images"] = memory.scores + weight * signal.scores
        found[f"memory x {name}, cells"] = top(memory.relative * signal.relative)
        parts = {"s_recon": memory.scores, "s_prior": signal.scores}
        found[f"memory gated by {name}, images"] = FUSIONS["gated"](parts.__getitem__)  # type: ignore[arg-type,assignment]
    return {name: scores.tolist() for name, scores in found.items()}


def _map_figures(
    context: BenchmarkContext, memory: _Signal, signals: dict[str, _Signal]
) -> dict[str, dict[str, float | None]]:
    """Return figures of the maps by candidate; nothing without masks."""
    if not context.test["mask_path"].fillna("").astype(bool).any():
        return {}
    params, pixels = context.params, dict[str, PixelMetrics]()
    sizes = zip(context.test["height"], context.test["width"], strict=True)
    paths = track(context.test["mask_path"].fillna(""), f"maps of {context.subject.name}", len(context.test))
    for index, ((height, width), path) in enumerate(zip(sizes, paths, strict=True)):
        canvas = subjects.blank_canvas(int(height), int(width), params.image)
        mask = geometry.mask_of(str(path), (canvas.height, canvas.width), context.subject.root)
        for name, cells in _maps(memory, signals, index):
            drawn = canvas.stitch([_enlarged(cells, params).numpy()])
            pixels.setdefault(name, PixelMetrics()).add(drawn, mask)
    return {n: {"pixel_auroc": x.auroc(), "aupro": x.aupro(), "aupro_05": x.aupro(0.05)} for n, x in pixels.items()}


def _maps(memory: _Signal, signals: dict[str, _Signal], index: int) -> Iterator[tuple[str, Tensor]]:
    """Yield each candidate and its map of one view, H x W."""
    yield ALONE, memory.map[index]
    for name, signal in signals.items():
        for weight in _WEIGHTS:
            yield f"memory + {weight:g} {name}", memory.map[index] + weight * signal.map[index]
        yield f"memory x {name}", memory.relative_map[index] * signal.relative_map[index]


def _enlarged(map_HW: Tensor, params: config.Params) -> Tensor:
    """Return a view's map in its pixels, blurred as `Scorer.smooth` does."""
    sigma, side = params.score.blur * map_HW.shape[-1] / params.image.size, params.image.size
    return _to_grid(blur_all(map_HW[None], sigma) if sigma > 0 else map_HW[None], (side, side))[0]


_Results = Sequence[Mapping[str, Any]]


def page(results: _Results, found: Sequence[Subject], params: config.Params, effort: Effort) -> str:
    """Return the page of `fusion.run`'s results."""
    tests = {one.name: one.rows[one.rows["split"] == "test"] for one in found}
    defects = {name: (rows["label"] == "defect").to_numpy(np.bool_) for name, rows in tests.items()}
    frame = pd.DataFrame(_rows(results, defects))
    weights = {n: bootstrap.weights(list(rows["group_id"]), defects[n], name=n) for n, rows in tests.items()}
    return "\n".join(
        [
            "# Does the trained mechanism see what the memory does not?",
            "",
            _about(results, params, effort),
            "",
            *readouts.sections(frame),
            *_image_differences(frame, results, defects, weights),
            *_map_differences(frame, results),
            *_learnt(results),
        ]
    )


def _about(results: _Results, params: config.Params, effort: Effort) -> str:
    seeds, names = (",".join(str(x) for x in dict.fromkeys(one[key] for one in results)) for key in ("seed", "class"))
    steps = ",".join(map(str, effort.steps))
    return (
        f"`python -m flows bench fusion --classes {names} --seeds {seeds} --steps {steps}`, split test, "
        f"{params.image.size} px; priors over codes trained for {effort.codes.steps} steps. Every figure is a look at "
        "test sets; the class that is left out judges what the others chose, the memory alone among the "
        "candidates. The memory is the shipped read-out, itself chosen on these classes.\n\n"
        "Signals are in deviations of normals, by the statistics that the score uses. *Cells* adds maps before the "
        "image score is read, the memory's weights adding up to 1; *images* adds image scores; *gated* adds a quarter "
        "of what a signal exceeds the normal one by; *x* multiplies values over their normal mean. Codes are the "
        f"network's own ({params.model.codes}) or at most {effort.codes.codes} k-means centres of the features of all "
        "classes (*class*, *universal*). A code's signal is its cross-entropy given the codes around it, its own 3x3 "
        "hidden, under two priors that each learnt from half of the parts."
    )


def _rows(results: _Results, defects: Mapping[str, Bools]) -> Iterable[dict[str, object]]:
    """Yield a row per class, seed, use and candidate, as `readouts.sections` takes them."""
    for one in results:
        about = {"class": one["class"], "seed": one["seed"]}
        for name, scores in one["image"].items():
            figure = image_auroc(defects[one["class"]], np.array(scores))
            yield {**about, "use": "image", "readout": name, "image_auroc": figure}
        for name, figures in one["map"].items():
            yield {**about, "use": "map", "readout": name, **figures}


def _shown(frame: pd.DataFrame, use: str, signals: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the classes, and by label the candidate of each class: the others' choice, and each signal's best."""
    names, classes, values = readouts.table(frame[frame["use"] == use], readouts.USES[use])
    merit = values.sum(0).mean(1)
    lines = [("chosen by the others", [names[i] for i in readouts.choices(values)])] if len(classes) > 1 else []
    for signal in signals:
        own = [i for i, name in enumerate(names) if signal in name and name not in (ALONE, f"{signal} alone")]
        best = names[max(own, key=lambda i: float(merit[i]))]
        lines.append((f"{best}, by hindsight", [best] * len(classes)))
    return classes, lines


def _image_differences(
    frame: pd.DataFrame, results: _Results, defects: Mapping[str, Bools], weights: Mapping[str, Floats]
) -> list[str]:
    classes, shown = _shown(frame, "image", _signals(results))
    lines = []
    for label, candidates in shown:
        found = [_difference(results, c, n, defects[c], weights[c]) for c, n in zip(classes, candidates, strict=True)]
        values, draws = [value for value, _ in found], [drawn for _, drawn in found]
        whole = (float(np.mean(values)), np.mean(draws, axis=0))
        lines.append([label, *(_signed(*one) for one in (*found, whole))])
    title = [
        "## Image AUROC minus the memory's alone",
        "",
        "With 95 % intervals of paired draws of the test's parts.",
        "",
    ]
    return [*title, *markdown(["candidate", *classes, "mean"], lines), ""]


def _difference(
    results: _Results, name: str, candidate: str, defect: Bools, weights_Dn: Floats
) -> tuple[float, Floats]:
    """Return the difference to the memory alone, mean over seeds, and of each draw."""
    both = [one["image"] for one in results if one["class"] == name and candidate in one["image"]]
    pairs = [(np.array(one[candidate]), np.array(one[ALONE])) for one in both]
    values = [(image_auroc(defect, ours) or 0.0) - (image_auroc(defect, alone) or 0.0) for ours, alone in pairs]
    draws = [
        bootstrap.image_aurocs(defect, ours, weights_Dn) - bootstrap.image_aurocs(defect, alone, weights_Dn)
        for ours, alone in pairs
    ]
    return float(np.mean(values)), np.mean(draws, axis=0)


def _signed(value: float, draws: Floats) -> str:
    found = bootstrap.interval(value, draws)
    return f"{value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _map_differences(frame: pd.DataFrame, results: _Results) -> list[str]:
    if (frame["use"] == "image").all():
        return []
    names, classes, values = readouts.table(frame[frame["use"] == "map"], readouts.USES["map"])
    minus = values - values[:, [names.index(ALONE)]]
    _, shown = _shown(frame, "map", _signals(results))
    lines = []
    for label, candidates in shown:
        each = np.stack([minus[:, names.index(n), c] for c, n in enumerate(candidates)])
        lines.append([label, *(" / ".join(f"{x:+.3f}" for x in one) for one in (*each, each.mean(0)))])
    heads = ["candidate", *classes, "mean"]
    return [f"## Map minus the memory's alone, {' / '.join(readouts.USES['map'])}", "", *markdown(heads, lines), ""]


def _signals(results: _Results) -> list[str]:
    own = (name for one in results for name in one["image"] if name != ALONE)
    return list(dict.fromkeys(name.removesuffix(" alone") for name in own if name.endswith(" alone")))


def _learnt(results: _Results) -> list[str]:
    """Tell whether codes are predictable: perplexity, nats of the prior against those of frequencies at each place."""
    facts = [{"class": one["class"], "prior": n, **f} for one in results for n, f in one["facts"].items()]
    if not facts:
        return []
    means = pd.DataFrame(facts).groupby(["prior", "class"], sort=False).mean()
    classes = list(dict.fromkeys(one["class"] for one in facts))
    lines = []
    for name in dict.fromkeys(one["prior"] for one in facts):
        own = [means.loc[(name, c)] for c in classes]
        lines.append([name, *(f"{x['perplexity']:.0f}; {x['frequencies']:.2f} → {x['nats']:.2f}" for x in own)])
    return [
        "## What the priors over codes learnt",
        "",
        "Perplexity of the codes of normals; nats a cell, of normals that did not teach, by the frequencies at each "
        "place → by the prior.",
        "",
        *markdown(["prior", *classes], lines),
        "",
    ]
