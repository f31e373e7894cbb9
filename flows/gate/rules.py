"""The promotion gate's rules. Pure: what was measured in, a verdict with every rule and its figures out."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flows.gate.statistics import Alarms, Comparison
from flows.versions.policy import PARITY_TOLERANCE, blind
from pvqae.core.config import Gate

_State = Literal["kept", "broken", "undecided"]
_Outcome = Literal["pass", "refused", "insufficient"]
_UNTRAINED = "no network was trained, or none is known"


@dataclass(frozen=True)
class Measured:
    """What the gate found. Fields of the champion are None when there is none: then only absolute rules hold."""

    groups: int
    normals: int
    defects: int
    auroc: Comparison | None  # None: without a champion, a normal or a defect
    own_auroc: float | None  # the challenger's
    aupro: Comparison | None  # None: without a champion or a masked defect
    own_aupro: float | None
    kinds: Mapping[str, Comparison]
    tried: tuple[int, int] | None  # the challenger's own synthetic defects, and those above its threshold
    alarms: Alarms | None  # of the challenger, at its own threshold, on the newest normals
    promised: float | None  # upper end of the 95 % interval that the challenger's card gives for its false-alarm rate
    target: float
    parity: float | None
    level_shares: tuple[float, ...]
    codebook_usage: float | None
    latency_ms: tuple[float, float] | None  # champion, challenger
    size_bytes: tuple[int, int] | None
    flaws: tuple[str, ...]  # what forbids this version to be champion, whatever its scores

    @property
    def first(self) -> bool:
        """Whether there is no champion to compare with."""
        return self.size_bytes is None


@dataclass(frozen=True)
class Rule:
    """One rule's answer; it prints as a line of the verdict."""

    name: str
    state: _State
    text: str

    def __str__(self) -> str:
        return f"{self.state}: {self.name}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """`lines` has every rule, kept or broken, with its figures; `promoted`: the champion alias was moved to it."""

    outcome: _Outcome
    promoted: bool
    lines: tuple[str, ...]
    figures: Mapping[str, Any]
    version: str = ""  # the one that was judged
    champion: str = ""  # the one that it was compared with, "none" for a first one
    held: str = ""  # why a verdict that allows it moved nothing: a pin, or an approval that lacks
    untold: tuple[str, ...] = ()  # lines on messages that did not arrive

    def sentence(self, model: str) -> str:
        """Say what came of a version of `model`."""
        did = "is champion now" if self.promoted else "was not promoted"
        return f"{model} version {self.version} against {self.champion}: {self.outcome}; it {did}"

    def promotable(self, limits: Gate) -> bool:
        """Tell whether the verdict makes the challenger champion."""
        return self.outcome == "pass" or (self.outcome == "insufficient" and limits.insufficient_promotes)


def _rule(name: str, kept: bool, text: str) -> Rule:
    return Rule(name, "kept" if kept else "broken", text)


def _eligible(found: Measured, limits: Gate) -> Rule:
    return _rule("lineage", not found.flaws, "; ".join(found.flaws) or "complete, and free to be promoted")


def _enough(found: Measured, limits: Gate) -> Rule:
    text = f"{found.groups} parts, {found.normals} normals, {found.defects} defects; at least {limits.min_groups} parts"
    held = found.groups >= limits.min_groups and found.normals and found.defects
    return Rule("gate images", "kept" if held else "undecided", text if held else f"{text} are needed")


def _non_inferior(found: Measured, limits: Gate) -> Rule:
    """Keep it when even the lower bound is within the margin.

    A difference within it whose bound is not is no proof of a worse model, only of too few images.
    """
    name, seen = "image AUROC", found.auroc
    if found.first:
        if found.own_auroc is None:
            return Rule(name, "undecided", "needs normals and defects at the gate")
        text = f"{found.own_auroc:.4f}, above {limits.first_auroc:g} wanted of a first champion"
        return _rule(name, found.own_auroc > limits.first_auroc, text)
    if seen is None:
        return Rule(name, "undecided", "needs normals and defects at the gate")
    text = (
        f"{seen.challenger:.4f} against {seen.champion:.4f}, difference {seen.difference:+.4f}, with "
        f"{limits.confidence:.0%} confidence at least {seen.low:+.4f}; margin {-limits.margin:+.4f}"
    )
    if seen.low >= -limits.margin:
        return Rule(name, "kept", text)
    if seen.difference < -limits.margin:
        return Rule(name, "broken", text)
    needed = max(seen.groups_needed(limits.margin, limits.confidence), seen.groups + 1)
    return Rule(name, "undecided", f"{text}; about {needed} parts would decide it, there are {seen.groups}")


def _overlap(found: Measured, limits: Gate) -> Rule:
    """Compare how well the maps overlap the masks: a loss beyond the margin that chance may explain is undecided."""
    name, seen = "AUPRO", found.aupro
    if found.own_aupro is None:
        return Rule(name, "kept", "not measured: no defect at the gate has a mask")
    if seen is None:
        return Rule(name, "kept", f"{found.own_aupro:.4f}, no champion to compare with")
    text = (
        f"{seen.challenger:.4f} against {seen.champion:.4f} on {seen.defects} masked defects, difference "
        f"{seen.difference:+.4f}, with {limits.confidence:.0%} confidence at most {seen.high:+.4f}; margin "
        f"{-limits.aupro_margin:+.4f}"
    )
    if seen.difference >= -limits.aupro_margin:
        return Rule(name, "kept", text)
    return Rule(name, "broken", text) if seen.high < 0 else Rule(name, "undecided", f"{text}; it may be chance")


def _worst_kind(found: Measured, limits: Gate) -> Rule:
    """Look at the kind that lost most; a loss counts if it exceeds the limit and chance does not explain it."""
    name = "worst defect kind"
    judged = {kind: seen for kind, seen in found.kinds.items() if seen.defects >= limits.min_kind}
    if not judged:
        return Rule(name, "kept", f"no kind has {limits.min_kind} defects to compare")
    lost = {kind: seen for kind, seen in judged.items() if seen.difference < -limits.kind_drop and seen.high < 0}
    kind, seen = min((lost or judged).items(), key=lambda item: item[1].difference)
    text = f"{kind}: image AUROC {seen.challenger:.4f} against {seen.champion:.4f}, {seen.difference:+.4f}"
    return _rule(name, not lost, f"{text} (at most {seen.high:+.4f}), limit {-limits.kind_drop:+.4f}")


def _finds(found: Measured, limits: Gate) -> Rule:
    """Break on a threshold above all that the detector was tried on: it finds nothing, whatever its AUROC."""
    text = "unknown: the bundle is too old to record it"
    if found.tried:
        text = f"{found.tried[1]} of {found.tried[0]} above its threshold"
    return _rule("its own synthetic defects", not blind(found.tried), text)


def _false_alarms(found: Measured, limits: Gate) -> Rule:
    name, seen = "false alarms on the newest normals", found.alarms
    if seen is None:
        return Rule(name, "undecided", "needs normals at the gate")
    if found.promised is None:
        text = f"{seen.rate:.1%} of {seen.n} images of {seen.groups} parts"
        return Rule(name, "undecided", f"{text}; the challenger learnt from too few good images to promise a rate")
    text = (
        f"{seen.rate:.1%} of {seen.n} images of {seen.groups} parts, with {limits.alarm_confidence:.0%} confidence at "
        f"least {seen.low:.1%}; target {found.target:.1%}, calibration promised at most {found.promised:.1%}"
    )
    return _rule(name, seen.low <= found.promised, text)


def _parity(found: Measured, limits: Gate) -> Rule:
    name = "parity of the bundle"
    if found.parity is None:
        return Rule(name, "broken", "no score could be compared with a fresh process")
    text = f"scores differ by {found.parity:.3g} in a fresh process, allowed {PARITY_TOLERANCE:g}"
    return _rule(name, found.parity <= PARITY_TOLERANCE, text)


def _levels(found: Measured, limits: Gate) -> Rule:
    shares = found.level_shares
    if not shares:
        return Rule("level shares", "kept", _UNTRAINED)
    text = f"{' / '.join(f'{share:.1%}' for share in shares)}, at most {limits.level_share:.0%} on one"
    return _rule("level shares", len(shares) < 2 or max(shares) <= limits.level_share, text)


def _codebook(found: Measured, limits: Gate) -> Rule:
    usage = found.codebook_usage
    if usage is None:
        return Rule("codebook usage", "kept", _UNTRAINED)
    return _rule("codebook usage", usage >= limits.codebook_usage, f"{usage:.1%}, at least {limits.codebook_usage:.0%}")


def _ratio(name: str, pair: tuple[float, float] | None, unit: str, limit: float) -> Rule:
    if pair is None:
        return Rule(name, "kept", "no champion to compare with")
    champion, challenger = pair
    ratio = challenger / champion if champion > 0 else float("inf")
    return _rule(
        name, ratio <= limit, f"{challenger:.1f} against {champion:.1f} {unit}, ratio {ratio:.2f}, limit {limit:g}"
    )


def _latency(found: Measured, limits: Gate) -> Rule:
    return _ratio("latency", found.latency_ms, "ms", limits.latency_ratio)


def _size(found: Measured, limits: Gate) -> Rule:
    pair = found.size_bytes and (found.size_bytes[0] / 1e6, found.size_bytes[1] / 1e6)
    return _ratio("size", pair, "MB", limits.size_ratio)


RULES: dict[str, Callable[[Measured, Gate], Rule]] = {
    "lineage": _eligible,
    "gate_images": _enough,
    "image_auroc": _non_inferior,
    "aupro": _overlap,
    "worst_kind": _worst_kind,
    "finds": _finds,
    "false_alarms": _false_alarms,
    "parity": _parity,
    "level_shares": _levels,
    "codebook_usage": _codebook,
    "latency": _latency,
    "size": _size,
}


def judge(found: Measured, limits: Gate) -> Verdict:
    """Apply all rules: a broken one refuses; without one, an undecided rule makes the verdict `insufficient`."""
    rules = [rule(found, limits) for rule in RULES.values()]
    states = {rule.state for rule in rules}
    outcome: _Outcome = "refused" if "broken" in states else "insufficient" if "undecided" in states else "pass"
    return Verdict(outcome, False, tuple(map(str, rules)), asdict(found))
