"""Drift of scored images against the profile of trusted normals: the verdict in words, JSON and one HTML page."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import write_text
from pvqae.drift import drift
from pvqae.drift.drift import Comparison
from pvqae.drift.profile import GROUP, SCORE, flatten
from pvqae.report import page, svg

Values = dict[str, Any]
_Verdict = Literal["drift", "none", "insufficient"]
_WINDOWS = 12  # most windows of one batch
_BARS = 24


@dataclass(frozen=True)
class _Window:
    """Consecutive images of a batch, judged as a batch of their own."""

    since: str  # when its first image was taken, or its path where no time is known
    n: int
    largest: float  # of the features, figure over limit; above 1 is drift


@dataclass(frozen=True)
class Report:
    """What became of a batch. `comparison` is None where there was too little to compare."""

    verdict: _Verdict
    sentence: str
    since: str
    comparison: Comparison | None
    windows: tuple[_Window, ...]

    @classmethod
    def of(cls, normals: pd.DataFrame, found: pd.DataFrame, threshold: float, settings: config.Drift) -> Self:
        """Judge the batch `found` (see `table`) against `normals` (a bundle's profile)."""
        groups, least = int(normals[GROUP].nunique()), drift.smallest(normals, settings.min_images)
        if len(found) < least or groups < drift.SMALLEST_GROUPS:
            return cls("insufficient", _too_few(len(found), least, groups), "", None, ())
        whole = drift.compare(normals, found, threshold, settings.rate, settings.draws)
        windows = tuple(_windows(normals, found, threshold, settings))
        since = _since(windows, str(found["since"].iloc[0])) if whole.drifted else ""
        return cls("drift" if whole.drifted else "none", _sentence(whole, since), since, whole, windows)

    def write(self, normals: pd.DataFrame, found: pd.DataFrame, threshold: float, name: str, out: Path) -> None:
        """Write drift.json and drift.html below `out`."""
        values = _as_values(self, name)
        write_text(out / "drift.html", _render(values, self, normals, found, threshold))
        write_text(out / "drift.json", json.dumps(values, indent=1, allow_nan=False) + "\n")


def table(rows: Iterable[Values], bundle_sha256: str) -> pd.DataFrame:
    """Return the scored rows of a scores.jsonl as features, in the order in which the images were taken.

    Raises `DataError` for rows of another bundle: their scores have another scale.
    """
    found = [row for row in rows if not row["error"]]
    if strange := next((row for row in found if row["bundle_sha256"] != bundle_sha256), None):
        raise DataError(
            f"{strange['path']}: expected scores of bundle {bundle_sha256[:12]}, found those of "
            f"{strange['bundle_sha256'][:12]}; score the images with this bundle first"
        )
    frame = pd.DataFrame([flatten(row) for row in found], columns=None if found else ["taken", "path", "score"])
    frame = frame.rename(columns={"score": SCORE})
    known = bool(len(frame)) and bool((frame["taken"] != "").all())
    frame = frame.sort_values("taken", kind="stable") if known else frame
    return frame.assign(since=frame["taken"] if known else frame["path"]).reset_index(drop=True)


def _too_few(n: int, least: int, groups: int) -> str:
    if groups >= drift.SMALLEST_GROUPS:
        return (
            f"Not judged: {n} images, at least {least} are needed: drift.min_images, and {drift.SMALLEST_GROUPS} parts "
            "photographed as often as the normals."
        )
    return (
        f"Not judged: the profile has normals of {groups} parts, at least {drift.SMALLEST_GROUPS} are needed; "
        "train with photographs of more parts."
    )


def _windows(normals: pd.DataFrame, found: pd.DataFrame, threshold: float, settings: config.Drift) -> Iterable[_Window]:
    """Yield at most `_WINDOWS` equal parts, each large enough to judge; none if the batch is shorter than two."""
    count = min(_WINDOWS, len(found) // drift.smallest(normals, settings.min_images))
    if count < 2:
        return
    size = len(found) // count
    null = drift.Null(normals, size, threshold, settings.rate, settings.draws, 0)
    for number in range(count):
        part = found.iloc[number * size : (number + 1) * size if number + 1 < count else None]
        yield _Window(str(part["since"].iloc[0]), len(part), round(_largest(null.judge(part)), 4))


def _largest(found: Comparison) -> float:
    """Return the largest figure over its limit."""
    return max(max(f.ks / f.limit for f in found.figures), found.share.excess / found.share.limit)


def _since(windows: Sequence[_Window], first: str) -> str:
    """Return the start of the drifted windows at the end; the batch's start if its last window alone shows no drift."""
    start = len(windows)
    while start and windows[start - 1].largest > 1:
        start -= 1
    return windows[start].since if start < len(windows) else first


def _sentence(found: Comparison, since: str) -> str:
    """Say what drifted, by how much, since when."""
    n = f"{found.n} images against {found.n_normal} trusted normals"
    if not found.drifted:
        return f"No drift: {n}; a shift of {found.detectable_shift:.1f} deviations of normals or more would have shown."
    return f"Drift since {since}: " + "; ".join(_words(found, name) for name in found.drifted) + f" ({n})."


def _words(found: Comparison, name: str) -> str:
    if name == drift.ABOVE:
        share, (low, high) = found.share, found.share.interval_95
        return (
            f"{share.above} of {share.n} images are above the threshold ({share.above / share.n:.1%}, 95 % within "
            f"{low:.1%}-{high:.1%}), of normals {share.normal:.1%}"
        )
    one = next(f for f in found.figures if f.name == name)
    label = name.replace("_", " ")
    if abs(one.shift) < 0.25:
        return f"{label} is spread differently, median {svg.short(one.median)} (KS {one.ks:.2f}, limit {one.limit:.2f})"
    way = "rose" if one.shift > 0 else "fell"
    return (
        f"{label} {way} from a median of {svg.short(one.normal_median)} to {svg.short(one.median)}, "
        f"{abs(one.shift):.1f} deviations of normals (KS {one.ks:.2f}, limit {one.limit:.2f})"
    )


def _as_values(report: Report, name: str) -> Values:
    """Return the content of drift.json."""
    found = report.comparison
    figures = [asdict(f) | {"drifted": f.drifted} for f in found.figures] if found else []
    return {
        "model": name,
        "verdict": report.verdict,
        "sentence": report.sentence,
        "since": report.since,
        "drifted": list(found.drifted) if found else [],
        "n": found.n if found else None,
        "n_normal": found.n_normal if found else None,
        "n_groups": found.n_groups if found else None,
        "detectable_shift": found.detectable_shift if found else None,
        "figures": figures,
        "share_above_threshold": asdict(found.share) | {"drifted": found.share.drifted} if found else None,
        "windows": [asdict(window) for window in report.windows],
    }


def _render(values: Values, report: Report, normals: pd.DataFrame, found: pd.DataFrame, threshold: float) -> str:
    """Render one page that needs no network, light and dark."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "report"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=page.percent, short=svg.short, label=lambda text: text.replace("_", " "))
    ordered = sorted(values["figures"], key=lambda one: -one["ks"] / one["limit"])
    charts = {one["name"]: _chart(normals, found, one["name"], threshold) for one in ordered}
    return environment.get_template("drift.html.j2").render(
        values=values, figures=ordered, charts=charts, timeline=_timeline(report.windows), threshold=threshold
    )


def _chart(normals: pd.DataFrame, found: pd.DataFrame, name: str, threshold: float) -> object:
    """Draw normals upwards and the batch downwards on common bins; the outermost bins hold what is farther out."""
    ours, theirs = (frame[name].to_numpy(np.float64) for frame in (normals, found))
    both = np.concatenate([ours, theirs])
    low, high = np.quantile(both, [0.005, 0.995])
    if not high > low:
        low, high = low - max(abs(low), 1e-6) * 0.1, low + max(abs(low), 1e-6) * 0.1
    edges = np.linspace(low, high, _BARS + 1)
    counts = [np.histogram(values.clip(low, high), edges)[0].tolist() for values in (ours, theirs)]
    bars = {"edges": edges.tolist(), "counts": {"normal": counts[0], "defect": counts[1]}, "clipped": high < both.max()}
    cut = threshold if name == SCORE and low <= threshold <= high else None
    return svg.histogram(bars, cut, "the batch", ("normal", "now"), name.replace("_", " "))


def _timeline(windows: Sequence[_Window]) -> object:
    if not windows:
        return None
    steps = list(range(1, len(windows) + 1))
    series = [{"step": steps, "value": [w.largest for w in windows]}, {"step": steps, "value": [1.0] * len(steps)}]
    return svg.lines(series, "largest figure over its limit, by window")
