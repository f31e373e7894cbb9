"""How sure the gate is at a given size, by simulation: `python -m flows promote power`.

Scores are drawn, then judged by the same rules that judge a real challenger. Models of the same quality differ by
their training's randomness: `_AGREEMENT` is the correlation of two of them on images of one label, `_PART` the share of
variance that the images of one part have in common. Both were measured (docs/decisions/11-gate.md).
"""

from collections.abc import Mapping
from dataclasses import replace

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
    groups=0, normals=0, defects=0, auroc=None, own_auroc=None, aupro=None, own_aupro=None, kinds={}, tried=None,
    alarms=None, promised=0.0, target=_TARGET, parity=0.0, level_shares=(0.3, 0.4, 0.3), codebook_usage=0.5,
    latency_ms=(1.0, 1.0), size_bytes=(1, 1), flaws=(),
)  # fmt: skip


def _two(shared: NDArray[np.float64], agreement: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the scores of two models that agree on what `shared` says of each image, 2 x N."""
    own = rng.standard_normal((2, *shared.shape))
    drawn: NDArray[np.float64] = np.sqrt(agreement) * shared + np.sqrt(1 - agreement) * own
    return drawn


def _draw(parts: int, auroc: float, worse_by: float, agreement: float, seed: int, limits: Gate) -> Measured:
    """Simulate one gate: a champion of true `auroc`, a challenger that is `worse_by` below it.

    Each of the `parts` has one image, and one with a synthetic defect of each kind.
    """
    rng = np.random.default_rng([seed, parts, 1])
    part = rng.standard_normal(parts) * np.sqrt(_PART)
    # How far defects score above normals, on average.
    lift = ndtri(np.array([[auroc], [auroc - worse_by]])) * np.sqrt(2 + _DEFECT_SPREAD**2)
    scores = [_two(part + rng.standard_normal(parts) * np.sqrt(1 - _PART), agreement, rng)]
    for _ in GATE_KINDS:
        base = part + rng.standard_normal(parts) * np.sqrt(1 - _PART)
        seen = rng.standard_normal(parts) * _DEFECT_SPREAD
        scores.append(_two(base, agreement, rng) + lift + seen)
    champion, challenger = np.concatenate(scores, axis=1)
    kinds, names = np.repeat(["good", *GATE_KINDS], parts), [str(number) for number in range(parts)]
    chosen = thresholds.threshold(rng.standard_normal(_CALIBRATION), _TARGET)
    return replace(
        _NOTHING_WRONG,
        **statistics.compared(champion, challenger, kinds, kinds != "good", names * (1 + len(GATE_KINDS)), limits),
        alarms=statistics.Alarms.of(challenger[:parts], names, chosen.value, limits.alarm_confidence),
        promised=chosen.interval_95[1],
    )


def _power(parts: int, worse_by: float, limits: Gate, draws: int) -> Mapping[str, float]:
    """Return the share of each outcome over `draws` seeded gates."""
    found = [judge(_draw(parts, _AUROC, worse_by, _AGREEMENT, seed, limits), limits).outcome for seed in range(draws)]
    return {outcome: found.count(outcome) / draws for outcome in ("pass", "refused", "insufficient")}


def table(limits: Gate, draws: int) -> Table:
    """Return the outcomes for an equal challenger and one worse by 0.05, at several sizes, as a table."""
    title = f"{draws} simulated gates per row; champion's AUROC {_AUROC:g}, agreement {_AGREEMENT:g}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("parts", "challenger", "pass", "refused", "insufficient"):
        shown.add_column(name, justify="left" if name == "challenger" else "right")
    for parts in _SIZES:
        for worse_by in (0.0, 0.05):
            shares = _power(parts, worse_by, limits, draws).values()
            what = f"worse by {worse_by:g}" if worse_by else "equal"
            shown.add_row(str(parts), what, *(f"{share:.1%}" for share in shares))
    return shown
