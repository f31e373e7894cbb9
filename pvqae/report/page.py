"""The report as one HTML page: no network, no other file, bounded in size for any number of classes."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from scipy.special import bdtrc

from pvqae.report import gallery, pictures, svg

if TYPE_CHECKING:
    from pvqae.report.report import ClassReport

Values = dict[str, Any]
_Write = Callable[[float | None], str]


def _figure(value: float | None) -> str:
    """Write an AUROC or the like to three decimals; never rounded up to a perfect 1."""
    if value is None:
        return "n/a"
    return f"{min(value, 0.999) if value < 1 else value:.3f}"


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"


def _area(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2g} %"


def _one_decimal(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"


def _megabytes(value: float | None) -> str:
    return "n/a" if value is None else f"{value / 1e6:.1f}"


_CHARTS = 120  # training curves of a page, of which a class gets 2 to 12
_SIZE = "{{ size of the page }}"  # stands in the text until the text is known
_COMPARED: dict[str, tuple[str, _Write, bool | None]] = {  # words, how it is written, whether more is better
    "image_auroc": ("image AUROC", _figure, True),
    "pixel_auroc": ("pixel AUROC", _figure, True),
    "false_alarm_rate": ("false alarms", percent, False),
    "miss_rate": ("missed defects", percent, False),
    "latency_ms": ("ms per image", _one_decimal, None),  # other work on the machine counts, too: no judgement
    "size_bytes": ("MB", _megabytes, False),
}
_NOT_EVALUATED = (
    "This class has no figures: its data did not pass the checks, or one of its stages failed. The other classes went "
    "on; `python -m flows train` names the cause."
)
_STATES = {"kept": "met", "broken": "not met"}
_METHODS = {
    "held_out": "normal images that the model has never seen",
    "leave_one_out": "normal images, each judged by what the other parts taught; they are few",
    "one_part": "slightly shifted, brighter and darker copies of the only good part",
    "cross_fit": "normal images, each scored by a model that was fitted without its group (cross-fitting)",
}


def render(
    metrics: Values,
    classes: list["ClassReport"],
    demo: bool,
    versions: Mapping[str, Values],
    notes: Sequence[str] = (),
    history: bool = False,
) -> str:
    """Render the page for `metrics` (the content of metrics.json) and its classes.

    `demo` labels it as no quality claim. `versions`: what `report.read_versions` gives; for a class without one, the
    page says how it gets there. `notes`: what the check of the data warned of. `history`:
    the flows write history.html next to it.
    """
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(figure=_figure, percent=percent, area=_area, short=svg.short, words=_words)
    shown = gallery.choose(classes)
    views = [_class(one, number, len(classes), versions.get(one.name)) for number, one in enumerate(classes)]
    for view in views:
        view["groups"] = shown.groups[view["name"]]
    text = environment.get_template("report.html.j2").render(
        metrics=metrics,
        demo=demo,
        verdict=f"{_verdict(metrics)}{_promises_nothing(classes)}",
        totals=_totals(metrics),
        warnings=[("the data", text) for text in notes]
        + [(name, _NOT_EVALUATED) for name in metrics.get("not_evaluated", [])]
        + [(one.name, text) for one in classes for text in _warnings(one)],
        classes=views,
        shown=shown,
        filters=shown.filters,
        heat=_gradient(pictures.HEAT),
        size=_SIZE,
        history=history,
    )
    return text.replace(str(escape(_SIZE)), f"{len(text) / 1e6:.1f} MB")


def _words(value: Any) -> str:
    """Write a figure of the card in any form that some version of the card has given it."""
    if isinstance(value, list | tuple):
        return " x ".join(map(_words, value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return svg.short(value) if number else "n/a" if value is None else str(value)


def _totals(metrics: Values) -> dict[str, int]:
    """Return counts over all classes at the calibrated thresholds."""
    classes = metrics["classes"].values()
    return {
        "normal": sum(one["n_normal"] for one in classes),
        "defect": sum(one["n_defect"] for one in classes),
        "false_alarms": sum(round(one["n_normal"] * (one["false_alarm_rate"] or 0)) for one in classes),
        "misses": sum(round(one["n_defect"] * (one["miss_rate"] or 0)) for one in classes),
    }


def _verdict(metrics: Values) -> str:
    """Return one or two plain sentences that a line engineer can act on."""
    count = _totals(metrics)
    stopped = _share(count["false_alarms"], count["normal"], "good images", "stopped")
    missed = _share(count["misses"], count["defect"], "defects", "missed")
    said = [text for text in (stopped, missed) if text]
    rates = f"At the calibrated thresholds, {' and '.join(said)}." if said else "There are no test images."
    if metrics["mean"]["image_auroc"] is None:
        return f"{rates} Detection is not judged: that needs good and defective test images of a class."
    judged = {name: one["image_auroc"] for name, one in metrics["classes"].items() if one["image_auroc"] is not None}
    weakest = min(judged, key=lambda name: judged[name])
    tail = f" The weakest class is {weakest}, with an image AUROC of {_figure(judged[weakest])}."
    return rates + tail * (len(judged) > 1)


def _promises_nothing(classes: Sequence["ClassReport"]) -> str:
    """Return a sentence on the classes whose cards promise no rate; "" if all promise one."""
    few = {one.name: one.card["no_promise"] for one in classes if one.card.get("no_promise")}
    if len(few) < 2:
        return "".join(f" {name} {words}." for name, words in few.items())
    *named, last = [*few] if len(few) < 5 else [*list(few)[:3], f"{len(few) - 3} other classes"]
    return f" {', '.join(named)} and {last} promise no false-alarm rate: each learnt from too few good images."


def _share(part: int, n: int, what: str, done: str) -> str:
    return f"{percent(part / n)} of the {what} are {done} ({part} of {n})" if n else ""


def _warnings(one: "ClassReport") -> list[str]:
    """Return what calibration and training warned of, and more false alarms than the card's interval allows.

    Few test images stray far by chance: it is a warning when even the interval's upper end makes them unlikely (5 %).
    """
    rate, n, (low, high) = one.metrics["false_alarm_rate"], one.metrics["n_normal"], one.card["interval_95"]
    found = [*one.card["warnings"], *one.health["warnings"]]
    if one.metrics["miss_rate"] == 1:
        found.append(f"All {one.metrics['n_defect']} defects of the test are missed at the calibrated threshold.")
    if rate is not None and bdtrc(round(rate * n) - 1, n, high) < 0.05:
        found.append(
            f"{percent(rate)} of the good test images raise an alarm; the calibration expected {percent(low)} to "
            f"{percent(high)}. Check that calibration and test images were taken in the same way."
        )
    return found


def _class(one: "ClassReport", number: int, n_classes: int, version: Values | None) -> Values:
    rates = one.metrics["false_alarm_rate"], one.metrics["miss_rate"]
    at = None if rates[0] is None or rates[1] is None else (rates[0], 1 - rates[1])
    roc = one.curves["roc"]
    return {
        "name": one.name,
        "anchor": f"class-{number}",
        "metrics": one.metrics,
        "card": one.card,
        "method": _METHODS.get(one.card["method"], one.card["method"]),
        "health": one.health,
        "warnings": _warnings(one),
        "roc": svg.roc(roc["false_positive_rate"], roc["true_positive_rate"], at, one.name) if at else None,
        "histogram": svg.histogram(one.curves["histogram"], one.metrics["threshold"], one.name),
        "slider": _slider(one),
        "levels": _levels(one),
        "marker": _marker(one.card),
        "outlined_above": pictures.outlined_above(one.card),
        "training": _training(one.curves["training"], min(12, max(2, _CHARTS // n_classes))),
        "version": version,
        "compared": _compared(version["comparison"]) if version and version["comparison"] else [],
        "rules": _rules(version["verdict"]) if version and version["verdict"] else [],
    }


def _slider(one: "ClassReport") -> Values:
    bars, metrics = one.curves["histogram"], one.metrics
    return {
        "low": bars["edges"][0],
        "high": bars["edges"][-1],
        "threshold": metrics["threshold"],
        "scores": {side: [float(f"{score:.6g}") for score in scores] for side, scores in bars["scores"].items()},
        "n": {"normal": metrics["n_normal"], "defect": metrics["n_defect"]},
    }


def _levels(one: "ClassReport") -> list[Values]:
    """Return legend and shares of the resolution levels, coarsest first; each costs 4 times the codes of the last."""
    if not (shares := one.health["level_shares"]):  # no network was trained
        return []
    names = {0: "coarse", len(shares) - 1: "fine"} if len(shares) > 1 else {0: "only level"}
    return [
        {"colour": _rgb(colour), "share": share, "name": names.get(level, f"level {level + 1}"), "codes": 4**level}
        for level, (colour, share) in enumerate(zip(pictures.level_colours(len(shares)), shares, strict=True))
    ]


def _compared(comparison: Values) -> list[Values]:
    """Return one row per figure of either version; `change` is better, worse, or "" where both are written alike."""
    rows = []
    for key, (name, write, more) in _COMPARED.items():
        this, other = (comparison[side].get(key) for side in ("this_figures", "other_figures"))
        known = more is not None and None not in (this, other) and write(this) != write(other)
        change = ("better" if (this > other) == more else "worse") if known else ""
        if this is not None or other is not None:
            rows.append({"name": name, "this": write(this), "other": write(other), "change": change})
    return rows


def _rules(verdict: Values) -> list[Values]:
    """Split the lines of a verdict into columns; a line of another form is kept whole."""
    parts = [line.split(": ", 2) for line in verdict["lines"]]
    rows = [part if len(part) == 3 else ("", "", ": ".join(part)) for part in parts]
    return [
        {"state": state, "shown": _STATES.get(state, state), "name": name, "text": text} for state, name, text in rows
    ]


def _marker(card: Values) -> float | None:
    """Return where the threshold of the outlines is on the colour bar, in percent of its width; None outside it."""
    low, high = card["map_scale"]
    place = 100 * (pictures.outlined_above(card) - low) / max(high - low, 1e-12)
    return round(place, 1) if 0 <= place <= 100 else None


def _training(series: list[Values], limit: int) -> list[Values]:
    """Return one chart per phase and number, its folds on common axes; the losses come first."""
    charts: dict[tuple[str, str], list[Values]] = defaultdict(list)
    for one in series:
        charts[one["phase"], one["name"]].append(one)
    order = sorted(charts, key=lambda key: not re.search("loss", key[1]))[:limit]
    return [
        {"title": f"{phase}: {name}", "chart": svg.lines(charts[phase, name], f"{name} while {phase}")}
        for phase, name in order
    ]


def _rgb(colour: Any) -> str:
    return f"rgb({', '.join(str(int(channel)) for channel in colour)})"


def _gradient(anchors: pictures.Colours) -> Markup:
    return Markup(f"linear-gradient(90deg, {', '.join(map(_rgb, anchors))})")
