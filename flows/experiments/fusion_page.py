"""The page of `fusion`: what each class's others chose, every candidate, and differences to the memory alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flows.experiments import bootstrap, readouts
from flows.experiments.bootstrap import Bools, Floats
from flows.experiments.fusion import ALONE, Effort
from flows.experiments.page import markdown
from flows.experiments.subjects import Subject
from pvqae.core import config
from pvqae.evaluation.metrics import image_auroc

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
