"""How sure the gate is at a given size, by simulation: `python -m flows promote power`.

Scores are drawn, then judged by the very rules that judge a real challenger. Models of the same quality differ by
their training's randomness: `AGREEMENT` is the correlation of two of them on images of one label, `PART` the share of
variance that exposures of one part have in common. Both were measured (docs/decisions/11-gate.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from scipy.special import ndtri

from flows.gate import gate_statistics
from flows.gate.rules import Measured, judge
from pvqae.calibration import thresholds
from pvqae.core.config import Gate
from pvqae.datasets.anomalies import GATE_KINDS

Floats = NDArray[np.float64]

DRAWS = 500
SIZES = (20, 50, 100, 150, 200)  # parts at the gate
DEFAULT = 200  # parts at which an equal challenger passes and one worse by 0.05 is refused, each in 95 % or more
AUROC = 0.9
AGREEMENT = 0.97
PART = 0.7
DEFECT_SPREAD = 1.0  # deviation of how visible the defects are, in deviations of normals
CALIBRATION = 200  # normals that set the threshold
TARGET = 0.05
# What is not simulated: a challenger as sound as its champion.
NOTHING_WRONG = Measured(
    groups=0,
    normals=0,
    defects=0,
    auroc=None,
    own_auroc=None,
    kinds={},
    tried=None,
    alarms=None,
    promised=0.0,
    target=TARGET,
    parity=0.0,
    level_shares=(0.3, 0.4, 0.3),
    codebook_usage=0.5,
    latency_ms=(1.0, 1.0),
    size_bytes=(1, 1),
    flaws=(),
)


@dataclass(frozen=True)
class Size:
    """`groups` parts with `exposures` images each; every image has a synthetic defect of each kind."""

    groups: int
    exposures: int = 1


@dataclass(frozen=True)
class Power:
    """Shares of the verdicts over the draws."""

    size: Size
    worse_by: float
    passed: float
    refused: float
    insufficient: float


def _visible(auroc: float) -> float:
    """How far defects lie above normals, on average, for that AUROC."""
    return float(ndtri(auroc) * np.sqrt(2 + DEFECT_SPREAD**2))


def _pair(shared: Floats, agreement: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    own = rng.standard_normal((2, *shared.shape)) * np.sqrt(1 - agreement)
    return np.sqrt(agreement) * shared + own[0], np.sqrt(agreement) * shared + own[1]


def draw(size: Size, auroc: float, worse_by: float, agreement: float, seed: int, limits: Gate) -> Measured:
    """One simulated gate: a champion of true `auroc`, a challenger that is `worse_by` below it."""
    rng = np.random.default_rng([seed, size.groups, size.exposures])
    group = np.repeat(np.arange(size.groups), size.exposures)
    part = rng.standard_normal(size.groups)[group] * np.sqrt(PART)
    normals = _pair(part + rng.standard_normal(len(group)) * np.sqrt(1 - PART), agreement, rng)
    scores, labels, kinds, owners = [np.stack(normals)], [np.zeros(len(group))], ["good"] * len(group), [group]
    lift = np.array([_visible(auroc), _visible(auroc - worse_by)])
    for kind in GATE_KINDS:
        base = part + rng.standard_normal(len(group)) * np.sqrt(1 - PART)
        seen = rng.standard_normal(len(group)) * DEFECT_SPREAD
        scores.append(np.stack(_pair(base, agreement, rng)) + lift[:, None] + seen)
        labels.append(np.ones(len(group)))
        kinds += [kind] * len(group)
        owners.append(group)
    champion, challenger = np.concatenate(scores, axis=1)
    defect, groups = np.concatenate(labels) > 0, [str(name) for name in np.concatenate(owners)]
    return _measured(champion, challenger, defect, groups, np.array(kinds), rng, limits)


def _measured(
    champion: Floats,
    challenger: Floats,
    defect: NDArray[np.bool_],
    groups: list[str],
    kinds: NDArray[np.str_],
    rng: np.random.Generator,
    limits: Gate,
) -> Measured:
    chosen = thresholds.threshold(rng.standard_normal(CALIBRATION), TARGET)
    how = (limits.confidence, limits.draws)
    own_parts = [name for name, bad in zip(groups, defect, strict=True) if not bad]
    return replace(
        NOTHING_WRONG,
        groups=len(set(groups)),
        normals=int((~defect).sum()),
        defects=int(defect.sum()),
        auroc=gate_statistics.compare(champion, challenger, defect, groups, *how),
        kinds=gate_statistics.compare_kinds(champion, challenger, kinds, defect, groups, *how),
        alarms=gate_statistics.alarms(challenger[~defect], own_parts, chosen.value, limits.alarm_confidence),
        promised=chosen.interval_95[1],
    )


def power(
    size: Size, worse_by: float, limits: Gate, auroc: float = AUROC, agreement: float = AGREEMENT, draws: int = DRAWS
) -> Power:
    """Verdicts over `draws` seeded draws."""
    verdicts = [judge(draw(size, auroc, worse_by, agreement, seed, limits), limits) for seed in range(draws)]
    share = {name: sum(v.outcome == name for v in verdicts) / draws for name in ("pass", "refused", "insufficient")}
    return Power(size, worse_by, share["pass"], share["refused"], share["insufficient"])


def lines(limits: Gate, draws: int = DRAWS) -> Iterator[Power]:
    """An equal challenger and one worse by 0.05, at several sizes."""
    for groups in SIZES:
        for worse_by in (0.0, 0.05):
            yield power(Size(groups), worse_by, limits, draws=draws)


def table(limits: Gate, draws: int = DRAWS) -> Table:
    title = f"{draws} simulated gates a line; champion's AUROC {AUROC:g}, agreement {AGREEMENT:g}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("parts", "challenger", "pass", "refused", "insufficient"):
        shown.add_column(name, justify="left" if name == "challenger" else "right")
    for found in lines(limits, draws):
        what = f"worse by {found.worse_by:g}" if found.worse_by else "equal"
        shares = (found.passed, found.refused, found.insufficient)
        shown.add_row(str(found.size.groups), what, *(f"{share:.1%}" for share in shares))
    return shown
