"""Decisions with their reasons. Pure: facts in, a decision out; imports no tool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pvqae.calibration.thresholds import LEVEL_LIMIT, USAGE_LIMIT, collapsed_codebook, collapsed_levels

Alias = Literal["champion", "challenger"]

# A score (of order 1 to 30, in deviations of normals) after a reload in a fresh process. With another number of
# threads sums have another order: 1.6e-5 on a score of 31 (measured). What is wrong with a bundle changes far more.
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Facts:
    """What is known of a bundle before it may become a version."""

    parity_difference: float | None  # None: the check did not give a figure
    missing_lineage: tuple[str, ...]
    uncommitted: tuple[str, ...]  # code files that differ from the commit that the lineage names
    level_shares: tuple[float, ...]
    codebook_usage: float | None
    image_auroc: float | None = None  # of the test split; None without defects in it
    tried: tuple[int, int] | None = None  # its own synthetic defects, and those above its threshold; None: unknown
    no_promise: str = ""  # why its calibration promises no false-alarm rate


@dataclass(frozen=True)
class Decision:
    """`alias` None: not to be registered. `reasons` has one line per rule, kept or broken."""

    alias: Alias | None
    reasons: tuple[str, ...]


def _obstacles(facts: Facts) -> tuple[str, ...]:
    """Return why the bundle can't be registered at all; empty when it can."""
    found = []
    if facts.parity_difference is None:
        found.append("parity with a fresh process was not established")
    elif not facts.parity_difference <= PARITY_TOLERANCE:
        found.append(f"scores change by {facts.parity_difference:.3g} on reload, allowed {PARITY_TOLERANCE:g}")
    if facts.missing_lineage:
        found.append(f"lineage lacks {', '.join(facts.missing_lineage)}")
    if facts.uncommitted:
        found.append(f"code differs from the commit: {', '.join(facts.uncommitted)}")
    return tuple(found)


def _collapse(facts: Facts) -> tuple[str, ...]:
    """Return what of the hierarchy or the codebook went unused; a single level cannot collapse."""
    found = []
    if collapsed_levels(facts.level_shares):
        found.append(f"one level has {max(facts.level_shares):.1%} of the cells, limit {LEVEL_LIMIT:.0%}")
    if facts.codebook_usage is not None and collapsed_codebook(facts.codebook_usage):
        found.append(f"{facts.codebook_usage:.1%} of the codes are used, at least {USAGE_LIMIT:.0%} wanted")
    return tuple(found)


def _useless(facts: Facts, first_auroc: float) -> tuple[str, ...]:
    """Return in what way it is no detector.

    It does not tell defects from normals, where there are defects to try it on, or finds none of those that it was
    tried on itself: its threshold is out of reach, however well its scores are ordered.
    """
    found = []
    if facts.image_auroc is not None and not facts.image_auroc > first_auroc:
        found.append(f"image AUROC {facts.image_auroc:.4f}, above {first_auroc:g} wanted of a first champion")
    if facts.tried and blind(facts.tried):
        found.append(f"none of its own {facts.tried[0]} synthetic defects scores above its threshold")
    return tuple(found)


def tried_of(card: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return `Facts.tried` by a bundle's calibration card; older ones do not say."""
    synthetic = card.get("synthetic")
    return (synthetic["n"], synthetic["found"]) if synthetic else None


def blind(tried: tuple[int, int] | None) -> bool:
    """Tell whether a detector that was tried on synthetic defects found none."""
    return tried is not None and tried[0] > 0 and tried[1] == 0


def decide(facts: Facts, *, later: bool, first_auroc: float = 0.5) -> Decision:
    """Decide on a version. The first of a model is champion by absolute rules: there is nothing to compare it with.

    A `later` one, of a model that has or had a champion, waits for the promotion gate. One that promises no rate may be
    the first: new images are screened by a champion, so without one a class would never get more. The reasons say it.
    """
    if against := _obstacles(facts):
        return Decision(None, against)
    few = (facts.no_promise,) if facts.no_promise else ()
    if later:
        return Decision("challenger", ("a champion exists: the gate decides", *_collapse(facts), *few))
    if flaws := (*_collapse(facts), *_useless(facts, first_auroc)):
        return Decision("challenger", flaws)
    seen = "no defects to try it on" if facts.image_auroc is None else f"image AUROC {facts.image_auroc:.4f}"
    return Decision("champion", ("parity holds", "lineage is complete", "code is committed", "no collapse", seen, *few))
