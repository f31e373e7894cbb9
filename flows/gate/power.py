"""How sure the gate is at a given size, by simulation: `python -m flows promote power`.

Scores are drawn, then judged by the very rules that judge a real challenger. Models of the same quality differ by
their training's randomness: `_AGREEMENT` is the correlation of two of them on images of one label, `_PART` the share of
variance that exposures of one part have in common. Both were measured (docs/decisions/11-gate.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from scipy.special import ndtri

from flows.gate import statistics
from flows.gate.rules import Measured, judge
from pvqae.calibration import thresholds
from pvqae.core.config import Gate
from pvqae.datasets.anomalies import GATE_KINDS

_Floats = NDArray[np.float64]

_DRAWS = 500
_SIZES = (20, 50, 100, 150, 200)  # parts at the gate
_DEFAULT = 200  # parts at which an equal challenger passes and one worse by 0.05 is refused, each in 95 % or more
_AUROC = 0.9
_AGREEMENT = 0.97
_PART = 0.7
_DEFECT_SPREAD = 1.0  # deviation of how visible the defects are, in deviations of normals
_CALIBRATION = 200  # normals that set the threshold
_TARGET = 0.05
# What is not simulated: a challenger as sound as its champion.
_NOTHING_WRONG = Measured(
    groups=0,
    normals=0,
    defects=0,
    auroc=None,
    own_auroc=None,
    kinds={},
    tried=None,
    alarms=None,
    promised=0.0,
    target=_TARGET,
    parity=0.0,
    level_shares=(0.3, 0.4, 0.3),
    codebook_usage=0.5,
    latency_ms=(1.0, 1.0),
    size_bytes=(1, 1),
    flaws=(),
)


@dataclass(frozen=True)
class _Size:
    """`groups` parts with `exposures` images each; every image has a synthetic defect of each kind."""

    groups: int
    exposures: int = 1


@dataclass(frozen=True)
class _Power:
    """Shares of the verdicts over the draws."""

    size: _Size
    worse_by: float
    passed: float
    refused: float
    insufficient: float


def _visible(auroc: float) -> float:
    """Return how far defects score above normals, on average, for that AUROC."""
    return float(ndtri(auroc) * np.sqrt(2 + _DEFECT_SPREAD**2))


def _pair(shared: _Floats, agreement: float, rng: np.random.Generator) -> tuple[_Floats, _Floats]:
    own = rng.standard_normal((2, *shared.shape)) * np.sqrt(1 - agreement)
    return np.sqrt(agreement) * shared + own[0], np.sqrt(agreement) * shared + own[1]


def _draw(size: _Size, auroc: float, worse_by: float, agreement: float, seed: int, limits: Gate) -> Measured:
    """Simulate one gate: a champion of true `auroc`, a challenger that is `worse_by` below it."""
    rng = np.random.default_rng([seed, size.groups, size.exposures])
    group = np.repeat(np.arange(size.groups), size.exposures)
    part = rng.standard_normal(size.groups)[group] * np.sqrt(_PART)
    normals = _pair(part + rng.standard_normal(len(group)) * np.sqrt(1 - _PART), agreement, rng)
    scores, labels, kinds, owners = [np.stack(normals)], [np.zeros(len(group))], ["good"] * len(group), [group]
    lift = np.array([_visible(auroc), _visible(auroc - worse_by)])
    for kind in GATE_KINDS:
        base = part + rng.standard_normal(len(group)) * np.sqrt(1 - _PART)
        seen = rng.standard_normal(len(group)) * _DEFECT_SPREAD
        scores.append(np.stack(_pair(base, agreement, rng)) + lift[:, None] + seen)
        labels.append(np.ones(len(group)))
        kinds += [kind] * len(group)
        owners.append(group)
    champion, challenger = np.concatenate(scores, axis=1)
    defect, groups = np.concatenate(labels) > 0, [str(name) for name in np.concatenate(owners)]
    chosen = thresholds.threshold(rng.standard_normal(_CALIBRATION), _TARGET)
    own_parts = [name for name, bad in zip(groups, defect, strict=True) if not bad]
    return replace(
        _NOTHING_WRONG,
        **statistics.compared(champion, challenger, np.array(kinds), defect, groups, limits),
        alarms=statistics.alarms(challenger[~defect], own_parts, chosen.value, limits.alarm_confidence),
        promised=chosen.interval_95[1],
    )


def _power(
    size: _Size,
    worse_by: float,
    limits: Gate,
    auroc: float = _AUROC,
    agreement: float = _AGREEMENT,
    draws: int = _DRAWS,
) -> _Power:
    """Judge `draws` seeded gates."""
    verdicts = [judge(_draw(size, auroc, worse_by, agreement, seed, limits), limits) for seed in range(draws)]
    share = {name: sum(v.outcome == name for v in verdicts) / draws for name in ("pass", "refused", "insufficient")}
    return _Power(size, worse_by, share["pass"], share["refused"], share["insufficient"])


def _lines(limits: Gate, draws: int = _DRAWS) -> Iterator[_Power]:
    """Yield the power for an equal challenger and one worse by 0.05, at several sizes."""
    for groups in _SIZES:
        for worse_by in (0.0, 0.05):
            yield _power(_Size(groups), worse_by, limits, draws=draws)


def table(limits: Gate, draws: int = _DRAWS) -> Table:
    """Return the power of the gate with `limits` at several sizes as a table."""
    title = f"{draws} simulated gates per row; champion's _AUROC {_AUROC:g}, agreement {_AGREEMENT:g}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("parts", "challenger", "pass", "refused", "insufficient"):
        shown.add_column(name, justify="left" if name == "challenger" else "right")
    for found in _lines(limits, draws):
        what = f"worse by {found.worse_by:g}" if found.worse_by else "equal"
        shares = (found.passed, found.refused, found.insufficient)
        shown.add_row(str(found.size.groups), what, *(f"{share:.1%}" for share in shares))
    return shown
