"""The history of a dataset as one HTML page: a chart and a table per class, all charts on one time axis.

Bounded in size for any number of classes and versions: the newest are shown, and a line says how many are left out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import pvqae.report

_MOST, _LEAST = 2400, 12  # rows of a page, shared by its classes; rows of a class
_LONGEST = 300  # characters of a reason
_WIDTH, _LEFT, _RIGHT = 1180, 168, 16  # SVG units
_TICKS = 8


@dataclass(frozen=True)
class Event:
    """Something that happened at a time (UTC). `n` and `share`: images, and those above the threshold, if known."""

    when: datetime
    kind: str
    version: str
    text: str
    who: str = ""
    n: int = 0
    share: float | None = None


@dataclass(frozen=True)
class Span:
    """From when to when something held for a version; `end` None: until now."""

    begin: datetime
    end: datetime | None
    version: str


@dataclass(frozen=True)
class VersionHistory:
    """A version: `state` now, its figures on the test split, and the gate's verdict with its figures, if it has one."""

    number: str
    when: datetime
    state: str  # champion | taken back | pass | refused | insufficient | waits
    trigger: str
    reason: str
    image_auroc: float | None
    alarm_rate: float | None
    outcome: str
    judged: datetime | None
    against: str
    gate: Mapping[str, Any]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class ClassHistory:
    """One class's model. `reigns`: who was champion when; `pins`: when the champion was pinned."""

    model: str
    category: str
    champion: str
    challenger: str
    pinned: str
    retired: str
    versions: tuple[VersionHistory, ...]
    reigns: tuple[Span, ...]
    pins: tuple[Span, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class History:
    """A dataset's classes, and its trainings and retrainings."""

    dataset: str
    classes: tuple[ClassHistory, ...]
    flows: tuple[Event, ...]


@dataclass(frozen=True)
class _Row:
    """A line of a table; `style` colours its word, `kind` is what the page's filter knows."""

    id: str
    when: datetime
    kind: str
    style: str
    what: str
    version: str
    figures: str
    text: str
    details: tuple[str, ...] = ()


_STYLES = {
    "champion": "good", "pass": "good", "waits": "soft", "insufficient": "warn", "refused": "bad", "taken back": "bad",
    "initial": "good", "gate": "good", "override": "warn", "rollback": "bad", "migration": "soft", "held": "warn",
    "pinned": "warn", "unpinned": "soft", "approved": "good", "retired": "soft", "review": "soft", "drift": "bad",
    "no drift": "good", "too few to tell": "soft", "failed": "bad", "waited": "soft", "train": "good",
    "retrain": "good",
}  # fmt: skip
_WHAT = {
    "initial": "first champion", "gate": "promoted", "override": "promoted by override", "rollback": "rolled back to",
    "migration": "migrated", "held": "waits for a person", "pinned": "champion pinned", "unpinned": "pin taken out",
    "train": "trained", "retrain": "retrained", "failed": "failed", "waited": "not retrained",
}  # fmt: skip
_KINDS = {
    "rollback": "moves", "initial": "moves", "gate": "moves", "override": "moves", "migration": "moves",
    "held": "holds", "pinned": "holds", "unpinned": "holds", "approved": "holds", "retired": "holds",
    "review": "reviews", "drift": "drift", "no drift": "drift", "too few to tell": "drift",
}  # fmt: skip
_LANES = ("drift", "reviews", "rollbacks", "pins, waits")
_LANE_OF = {
    "drift": 0, "no drift": 0, "too few to tell": 0, "review": 1, "rollback": 2, "held": 3, "approved": 3, "pinned": 3,
    "unpinned": 3, "retired": 3,
}  # fmt: skip


@dataclass(frozen=True)
class _Axis:
    """Time → SVG units."""

    begin: datetime
    end: datetime

    def x(self, when: datetime) -> float:
        share = (when - self.begin) / (self.end - self.begin)
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(share, 0.0), 1.0), 1)

    @property
    def ticks(self) -> list[tuple[datetime, str]]:
        """Return at most `_TICKS` round times with their words."""
        for step, form in _STEPS:
            found = list(_rounded(self.begin, self.end, step))
            if len(found) <= _TICKS:
                return [(when, when.strftime(form)) for when in found]
        years = max(1, math.ceil((self.end.year - self.begin.year) / _TICKS))
        return [
            (datetime(year, 1, 1, tzinfo=UTC), str(year))
            for year in range(self.begin.year + 1, self.end.year + 1)
            if year % years == 0
        ]


# A number of seconds, or of months as a negative one.
_MONTHS = (-1, -2, -3, -6, -12)
_STEPS: tuple[tuple[int, str], ...] = (
    *((minutes * 60, "%H:%M") for minutes in (1, 5, 15, 30)),
    *((hours * 3600, "%d %b %H:%M") for hours in (1, 3, 6, 12)),
    *((days * 86400, "%d %b") for days in (1, 2, 7, 14)),
    *((months, "%b %Y") for months in _MONTHS),
)


def _rounded(begin: datetime, end: datetime, step: int) -> Iterator[datetime]:
    """Yield the round times between two; at most some more than `_TICKS`."""
    if step > 0:
        first = math.ceil(begin.timestamp() / step)
        for number in range(first, min(first + _TICKS + 1, math.floor(end.timestamp() / step) + 1)):
            yield datetime.fromtimestamp(number * step, UTC)
        return
    month, count = math.ceil((begin.year * 12 + begin.month) / -step) * -step, 0
    while (at := datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)) <= end and count <= _TICKS:
        yield at
        month, count = month - step, count + 1


def render(history: History, now: datetime | None = None) -> str:
    """Render the page; `now` ends the time axis."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, Path(pvqae.report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(day=lambda when: when.strftime("%Y-%m-%d"), clock=lambda when: when.strftime("%H:%M"))
    now = now or datetime.now(UTC)
    most = max(_LEAST, _MOST // max(1, len(history.classes) + 1))
    axis = _axis(history, now)
    views = [_view(one, number, axis, now, most) for number, one in enumerate(history.classes)]
    flows = _newest([_flow_row(event, number) for number, event in enumerate(history.flows)], most)
    return environment.get_template("history.html.j2").render(
        history=history,
        sentence=_sentence(history),
        classes=views,
        flows=_months(flows),
        flow_chart=_flow_chart(history.flows[-most:], axis),
        left_out=len(history.flows) - len(flows),
        now=now,
    )


def _axis(history: History, now: datetime) -> _Axis:
    times = [event.when for event in history.flows]
    for one in history.classes:
        times += [version.when for version in one.versions] + [event.when for event in one.events]
    begin, end = min([*times, now]), max([*times, now])
    margin = max((end - begin) * 0.01, timedelta(minutes=1))
    return _Axis(begin - margin, end + margin)


def _sentence(history: History) -> str:
    """Say in numbers what happened."""
    versions = [version for one in history.classes for version in one.versions]
    kinds = [event.kind for one in history.classes for event in one.events]
    if not versions:
        return "No version is registered yet."
    since = min(version.when for version in versions)
    counts = {
        "promotion": sum(kind in ("gate", "override", "initial") for kind in kinds),
        "refusal": sum(version.outcome == "refused" for version in versions),
        "rollback": kinds.count("rollback"),
        "report of drift": kinds.count("drift"),
        "failed run": sum(event.kind == "failed" for event in history.flows),
    }
    said = ", ".join(f"{n} {_plural(words, n)}" for words, n in counts.items() if n)
    n, classes = len(versions), len(history.classes)
    begin = f"{n} {_plural('version', n)} of {classes} class{'es' * (classes != 1)} since {since:%Y-%m-%d}"
    return f"{begin}{': ' * bool(said)}{said}."


def _plural(words: str, n: int) -> str:
    first, _, rest = words.partition(" of ")
    return f"{first}{'s' * (n != 1)}{f' of {rest}' * bool(rest)}"


def _view(one: ClassHistory, number: int, axis: _Axis, now: datetime, most: int) -> dict[str, Any]:
    rows = [_version_row(version, number) for version in one.versions]
    rows += [_event_row(event, f"e{number}-{count}") for count, event in enumerate(one.events)]
    shown = _newest(rows, most)
    return {
        "history": one,
        "anchor": f"class-{number}",
        "chart": _chart(one, number, axis, now, most),
        "months": _months(shown),
        "kinds": sorted({row.kind for row in shown}),
        "left_out": len(rows) - len(shown),
    }


def _newest(rows: Sequence[_Row], most: int) -> list[_Row]:
    return sorted(rows, key=lambda row: row.when, reverse=True)[:most]


def _months(rows: Sequence[_Row]) -> list[tuple[str, list[_Row]]]:
    """Return the rows by month, the newest first."""
    return [(month, list(own)) for month, own in groupby(rows, key=lambda row: row.when.strftime("%B %Y"))]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _difference(gate: Mapping[str, Any]) -> str:
    if gate.get("difference") is None:
        return ""
    low, high = (f"{gate[key]:+.3f}" if gate.get(key) is not None else "?" for key in ("low", "high"))
    return f"{gate['difference']:+.3f} ({low} to {high}) image AUROC against the champion"


def _gate_figures(version: VersionHistory) -> str:
    gate = version.gate
    found = []
    if version.image_auroc is not None:
        found.append(f"test AUROC {version.image_auroc:.3f}")
    if gate.get("image_auroc") is not None:
        found.append(f"gate AUROC {gate['image_auroc']:.3f}")
    if said := _difference(gate):
        found.append(said)
    if gate.get("alarm_rate") is not None:
        found.append(f"{_percent(gate['alarm_rate'])} false alarms")
    return ", ".join(found)


def _version_row(version: VersionHistory, number: int) -> _Row:
    judged = f"against {version.against}: {version.outcome}; " if version.outcome else ""
    text = f"{judged}{version.trigger}: {version.reason}"[:_LONGEST]
    style, what = _STYLES.get(version.state, "soft"), f"registered, {version.state}"
    figures = _gate_figures(version)
    broken = tuple(rule for rule in version.rules if not rule.startswith("kept: "))[:6]
    return _Row(f"v{number}-{version.number}", version.when, "versions", style, what, version.number, figures, text,
                tuple(rule[:_LONGEST] for rule in broken))  # fmt: skip


def _event_row(event: Event, name: str) -> _Row:
    figures = f"{event.n} images" if event.n else ""
    if event.share is not None:
        figures += f", {_percent(event.share)} above the threshold"
    text = f"{event.text}{f' ({event.who})' if event.who else ''}"[:_LONGEST]
    style, what = _STYLES.get(event.kind, "soft"), _WHAT.get(event.kind, event.kind)
    return _Row(name, event.when, _KINDS.get(event.kind, "flows"), style, what, event.version, figures, text)


def _flow_row(event: Event, number: int) -> _Row:
    return _event_row(event, f"f-{number}")


class _Drawing:
    """SVG marks that are collected; all text is escaped. Heights are SVG units from the top."""

    def __init__(self, axis: _Axis) -> None:
        self.axis, self.parts, self.height = axis, list[Markup](), 0

    def lane(self, name: str, height: int) -> tuple[int, int]:
        """Begin a lane below the others; return where it begins and ends."""
        top = self.height
        self.height += height
        self.text(0, top + height / 2 + 4, name)
        self.parts.append(
            Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _LEFT, _WIDTH - _RIGHT, self.height, self.height
            )
        )
        return top, self.height

    def text(self, x: float, y: float, words: str, anchor: str = "start") -> None:
        self.parts.append(Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, words))

    def rule(self, y: float) -> None:
        """Draw a dashed line across."""
        y = round(y, 1)
        self.parts.append(
            Markup('<line class="guide" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _WIDTH - _RIGHT, y, y)
        )

    def tick(self, y: float, words: str) -> None:
        """Write a value beside the lane."""
        self.text(_LEFT - 6, round(y + 4, 1), words, "end")

    def dot(self, when: datetime, y: float, style: str, title: str, link: str, radius: float = 4) -> None:
        self.parts.append(
            Markup('<a href="#{}"><circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle></a>').format(
                link, style, self.axis.x(when), round(y, 1), radius, title
            )
        )

    def bar(self, when: datetime, y0: float, y1: float, style: str) -> None:
        x = self.axis.x(when)
        self.parts.append(
            Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(style, x, x, round(y0, 1), round(y1, 1))
        )

    def span(self, span: Span, now: datetime, y: float, height: float, style: str, title: str) -> None:
        x0, x1 = self.axis.x(span.begin), self.axis.x(span.end or now)
        self.parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                style, x0, y, max(round(x1 - x0, 1), 1), height, title
            )
        )
        if x1 - x0 > 9 * len(span.version) + 8:
            self.text((x0 + x1) / 2, y + height / 2 + 4, span.version, "middle")

    def svg(self, title: str) -> Markup:
        """Return the drawing with the time axis below it."""
        grid = []
        for when, words in self.axis.ticks:
            x = self.axis.x(when)
            grid.append(Markup('<line class="grid" x1="{}" x2="{}" y1="0" y2="{}"/>').format(x, x, self.height))
            anchor = "start" if x < _LEFT + 30 else "end" if x > _WIDTH - _RIGHT - 30 else "middle"
            grid.append(
                Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, self.height + 16, anchor, words)
            )
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
            _WIDTH, self.height + 22, title, Markup("").join(grid), Markup("").join(self.parts)
        )


def _scale(values: Iterable[float], top: float, bottom: float) -> Any:
    """Return what maps a value to a height, the greatest to the top; with a margin."""
    known = list(values)
    low, high = min(known), max(known)
    room = (high - low) * 0.1 or max(abs(high), 1e-3) * 0.1
    low, high = low - room, high + room
    return lambda value: bottom - 6 - (bottom - top - 12) * (value - low) / (high - low)


def _chart(one: ClassHistory, number: int, axis: _Axis, now: datetime, most: int) -> Markup:
    drawing, versions = _Drawing(axis), one.versions[-most:]
    radius = 4 if len(versions) < 150 else 3
    top, _ = drawing.lane("champion", 28)
    for count, reign in enumerate(one.reigns[-most:]):
        words = f"version {reign.version} was champion from {reign.begin:%Y-%m-%d %H:%M}"
        until = f" to {reign.end:%Y-%m-%d %H:%M}" if reign.end else " on"
        drawing.span(reign, now, top + 5, 18, f"reign{count % 2}", words + until)
    top, _ = drawing.lane("versions", 30)
    for version in versions:
        title = f"version {version.number}, {version.when:%Y-%m-%d %H:%M}: {version.state}"
        drawing.dot(version.when, top + 15, _STYLES.get(version.state, "soft"), title, f"v{number}-{version.number}",
                    radius)  # fmt: skip
    _differences(drawing, [version for version in versions if version.gate.get("difference") is not None], number)
    _alarms(drawing, one, versions, number)
    tops = [drawing.lane(name, 22)[0] for name in _LANES]
    for pin in one.pins:
        drawing.span(pin, now, tops[3] + 5, 12, "pin", f"version {pin.version} was pinned")
    for count, event in enumerate(one.events[-most:], max(0, len(one.events) - most)):
        if event.kind in _LANE_OF:
            words = f"{event.when:%Y-%m-%d %H:%M} {_WHAT.get(event.kind, event.kind)} {event.version}".strip()
            drawing.dot(event.when, tops[_LANE_OF[event.kind]] + 11, _STYLES.get(event.kind, "soft"),
                        f"{words}: {event.text[:120]}", f"e{number}-{count}", radius)  # fmt: skip
    return drawing.svg(f"{one.category}: versions, gate, false alarms and what happened, over time")


def _differences(drawing: _Drawing, judged: Sequence[VersionHistory], number: int) -> None:
    """Draw the challengers' image AUROC minus the champions', with intervals."""
    if not judged:
        return
    top, bottom = drawing.lane("gate: AUROC gain", 110)
    known = [v.gate[key] for v in judged for key in ("difference", "low", "high") if v.gate.get(key) is not None]
    place = _scale([*known, 0.0], top, bottom)
    drawing.rule(place(0.0))
    for value in {max(known), min(known)}:
        drawing.tick(place(value), f"{value:+.3f}")
    if min(abs(place(value) - place(0.0)) for value in (max(known), min(known))) > 14:
        drawing.tick(place(0.0), "0")
    for version in judged:
        gate, when = version.gate, version.judged or version.when
        if gate.get("low") is not None and gate.get("high") is not None:
            drawing.bar(when, place(gate["low"]), place(gate["high"]), "whisker")
        title = f"version {version.number}: {_difference(gate)}, {version.outcome}"
        drawing.dot(when, place(gate["difference"]), _STYLES.get(version.outcome, "soft"), title,
                    f"v{number}-{version.number}", 3)  # fmt: skip


def _alarms(drawing: _Drawing, one: ClassHistory, versions: Sequence[VersionHistory], number: int) -> None:
    """Draw the share of normals stopped at the gate; where drift was judged that of images above the threshold."""
    judged = [version for version in versions if version.gate.get("alarm_rate") is not None]
    scored = [(count, event) for count, event in enumerate(one.events) if event.share is not None]
    if not (judged or scored):
        return
    top, bottom = drawing.lane("false alarms", 90)
    targets = [version.gate["target"] for version in judged if version.gate.get("target") is not None][-1:]
    known = [version.gate["alarm_rate"] for version in judged] + [event.share or 0.0 for _, event in scored]
    place = _scale([*known, *targets, 0.0], top, bottom)
    for target in targets:
        drawing.rule(place(target))
        if abs(place(target) - place(max(known))) > 14:
            drawing.tick(place(target), f"target {_percent(target)}")
    drawing.tick(place(max(known)), _percent(max(known)))
    for version in judged:
        gate, when = version.gate, version.judged or version.when
        if gate.get("alarm_low") is not None:
            drawing.bar(when, place(gate["alarm_low"]), place(gate["alarm_rate"]), "whisker")
        title = f"version {version.number} at the gate: {_percent(gate['alarm_rate'])} false alarms of "
        title += f"{gate.get('normals')} normals, at least {_percent(gate.get('alarm_low'))}"
        drawing.dot(when, place(gate["alarm_rate"]), "normal", title, f"v{number}-{version.number}", 3)
    for count, event in scored:
        title = f"{event.when:%Y-%m-%d %H:%M}: {_percent(event.share)} of {event.n} scored images above the threshold"
        drawing.dot(event.when, place(event.share or 0.0), "open", title, f"e{number}-{count}", 3)


def _flow_chart(flows: Sequence[Event], axis: _Axis) -> Markup:
    drawing = _Drawing(axis)
    for name, kinds in (("trained", ("train", "retrain")), ("not trained", ("waited",)), ("failed", ("failed",))):
        top, _ = drawing.lane(name, 24)
        for event in flows:
            if event.kind in kinds:
                title = f"{event.when:%Y-%m-%d %H:%M} {event.text[:160]}"
                drawing.dot(event.when, top + 12, _STYLES[event.kind], title, "flows", 3)
    return drawing.svg("trainings and retrainings over time")
