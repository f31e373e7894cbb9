"""Charts as inline SVG. Colours are CSS classes, so that one chart serves light and dark; all text is escaped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

_Point = tuple[float, float]


@dataclass(frozen=True)
class _Frame:
    """A plotting area of `width` x `height` SVG units, y upwards, for data x in [x0, x1] and y in [y0, y1]."""

    width: int
    height: int
    x0: float
    x1: float
    y0: float
    y1: float
    left: int = 44
    right: int = 12
    top: int = 12
    bottom: int = 34

    def x(self, value: float) -> float:
        span = self.width - self.left - self.right
        return round(self.left + span * (value - self.x0) / ((self.x1 - self.x0) or 1), 1)

    def y(self, value: float) -> float:
        span = self.height - self.top - self.bottom
        return round(self.height - self.bottom - span * (value - self.y0) / ((self.y1 - self.y0) or 1), 1)


def roc(false_positive: Sequence[float], true_positive: Sequence[float], at: _Point | None, name: str) -> Markup:
    """Draw the ROC of class `name`; `at` is the working point (false-alarm rate, hit rate) at the threshold."""
    frame = _Frame(300, 280, 0, 1, 0, 1, left=58)
    points = list(zip(false_positive, true_positive, strict=True))
    marks = [_line(frame, [(0, 0), (1, 1)], "guide"), _line(frame, points, "line-defect thick")]
    if at is not None:
        marks.append(Markup('<circle class="cut-dot" cx="{}" cy="{}" r="5"/>').format(frame.x(at[0]), frame.y(at[1])))
    axes = _axes(frame, [(v, f"{v:.0%}") for v in (0, 0.5, 1)], [(v, f"{v:.0%}") for v in (0, 0.5, 1)])
    labels = _labels(frame, "false alarms", "defects found")
    return _svg(frame, f"ROC of {name}: share of defects found against share of false alarms", [axes, *marks, labels])


def histogram(
    bars: dict[str, Any],
    threshold: float | None,
    name: str,
    words: tuple[str, str] = ("normal", "defect"),
    axis: str = "image score",
) -> Markup:
    """Draw the score histogram of class `name` (`bars` as in curves.json): normals upwards, defects downwards.

    `words` name the two sides where they are something else. Each side is scaled to its own tallest bar. The
    threshold line has the class "cut", which the slider moves.
    """
    edges = bars["edges"]
    frame = _Frame(640, 260, edges[0], edges[-1], -1, 1, left=12, top=24, bottom=48)
    counts = bars["counts"]
    shapes = [*_bars(frame, edges, counts["normal"], 1, words[0]), *_bars(frame, edges, counts["defect"], -1, words[1])]
    middle = _line(frame, [(edges[0], 0), (edges[-1], 0)], "axis")
    cut = Markup("")
    if threshold is not None:
        cut = Markup('<line class="cut" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            frame.x(threshold), frame.top, frame.height - frame.bottom
        )
    ticks = [(edges[0] + share * (edges[-1] - edges[0])) for share in (0, 0.25, 0.5, 0.75, 1)]
    more = "≥ " if bars["clipped"] else ""
    axes = _axes(frame, [(v, (more if v == ticks[-1] else "") + short(v)) for v in ticks], [])
    sides = Markup('<text x="{0}" y="20">▲ {2}</text><text x="{0}" y="{1}">▼ {3}</text>').format(
        frame.left + 4, frame.height - frame.bottom - 5, *words
    )
    limit = "" if threshold is None else f", threshold {short(threshold)}"
    title = f"{axis.capitalize()}s of {name}: {words[0]}s upwards, {words[1]}s downwards{limit}"
    return _svg(frame, title, [*shapes, middle, axes, sides, cut, _labels(frame, axis, "")])


def _bars(frame: _Frame, edges: Sequence[float], counts: Sequence[int], sign: int, word: str) -> Iterable[Markup]:
    tallest = max(max(counts), 1)
    side = "normal" if sign > 0 else "defect"
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            top, base = sorted((frame.y(sign * 0.92 * count / tallest), frame.y(0)))
            yield Markup(
                '<rect class="fill-{}" x="{}" y="{}" width="{:.1f}" height="{:.1f}">'
                "<title>{} {}, {} to {}</title></rect>"
            ).format(
                side, frame.x(left), top, frame.x(right) - frame.x(left) - 1, base - top,
                count, word, short(left), short(right),
            )  # fmt: skip


def lines(series: Sequence[dict[str, Any]], title: str) -> Markup:
    """Draw lines {step, value} on common axes."""
    steps = [step for one in series for step in one["step"]]
    values = [value for one in series for value in one["value"]]
    low, high = min(values), max(values)
    frame = _Frame(240, 150, min(steps), max(steps), low, high)
    drawn = [_line(frame, list(zip(one["step"], one["value"], strict=True)), "line-normal") for one in series]
    axes = _axes(frame, [(v, short(v)) for v in {frame.x0, frame.x1}], [(v, short(v)) for v in {low, high}])
    return _svg(frame, f"{title}, from {short(values[0])} to {short(values[-1])}", [axes, *drawn])


def short(value: float) -> str:
    """Write three significant digits, without an exponent where it is readable without."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _line(frame: _Frame, points: Iterable[_Point], style: str) -> Markup:
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
    return Markup('<polyline class="{}" points="{}"/>').format(style, path)


def _axes(frame: _Frame, x_ticks: Iterable[tuple[float, str]], y_ticks: Iterable[tuple[float, str]]) -> Markup:
    bottom = frame.height - frame.bottom
    base = Markup('<polyline class="axis" points="{0},{1} {0},{2} {3},{2}"/>').format(
        frame.left, frame.top if y_ticks else bottom, bottom, frame.width - frame.right
    )
    x_text = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
            frame.x(v),
            bottom + (frame.bottom + 2) // 3 + 3,
            "end" if v == frame.x1 else "start" if v == frame.x0 else "middle",
            text,
        )
        for v, text in x_ticks
    )
    y_text = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(frame.left - 5, frame.y(v) + 4, text)
        for v, text in y_ticks
    )
    return base + x_text + y_text


def _labels(frame: _Frame, x: str, y: str) -> Markup:
    middle = (frame.left + frame.width - frame.right) / 2
    return Markup(
        '<text x="{}" y="{}" text-anchor="middle">{}</text><text class="up" transform="translate(12 {}) rotate(-90)" '
        'text-anchor="middle">{}</text>'
    ).format(middle, frame.height - 5, x, (frame.top + frame.height - frame.bottom) / 2, y)


def _svg(frame: _Frame, title: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        frame.width, frame.height, title, Markup("").join(parts)
    )
