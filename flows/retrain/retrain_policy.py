"""Whether to train again, with the reasons. Pure: facts in, a decision out; imports no tool."""

from dataclasses import dataclass
from typing import Literal

from pvqae.core.config import Retrain

Trigger = Literal["manual", "schedule", "samples", "drift"]


@dataclass(frozen=True)
class ClassFacts:
    """What is known of a class. `champion` is a version, "" for none; its age is None where that is not known.

    `new_normals` to train with that its champion has not seen; None: what the champion has seen is not known. Of them
    `unseen` were not looked at yet (a dry run). Nothing learns from the others that it has not seen: the `new_tests` of
    the test split and the `new_gates` of the gate.
    `trained`: its version that was made of this very data, "" for none; `judged`: the gate has a verdict on that.
    """

    category: str
    champion: str
    age_days: float | None
    new_normals: int | None
    in_review: int = 0
    new_tests: int = 0
    new_gates: int = 0
    unseen: int = 0
    trained: str = ""
    judged: bool = False


@dataclass(frozen=True)
class Facts:
    """`force`: the reason of an explicit request, `drift`: what drifted, "" for none."""

    trigger: Trigger
    force: str
    drift: str
    classes: tuple[ClassFacts, ...]


@dataclass(frozen=True)
class Decision:
    """`judge`: only the gate's verdict on what was trained already is missing.

    `trigger` is what made the training necessary, `reason` why in one line; `reasons` has one line per rule.
    """

    act: Literal["train", "judge", "wait"]
    trigger: Trigger
    reason: str
    reasons: tuple[str, ...]


def decide(facts: Facts, limits: Retrain) -> Decision:
    """Train on request; else if there is something new to learn, and enough of it, or an old champion, or drift.

    What was already trained on this data is not trained again, but a version that waits for the gate is judged.
    """
    if facts.force:
        return _yes(facts.trigger, f"asked for: {facts.force}", ())
    reasons = [*_samples(facts, limits), *_ages(facts, limits), *_drift(facts, limits)]
    kept = tuple(line for _, _, line in reasons)
    if facts.classes and all(item.trained for item in facts.classes):
        waiting = [f"{item.category} version {item.trained}" for item in facts.classes if not item.judged]
        if waiting:
            pending = f"trained on this data but not judged yet: {', '.join(waiting)}"
            return Decision("judge", facts.trigger, pending, (pending, *kept))
        done = "every class was trained on this data already, and judged"
        return Decision("wait", facts.trigger, done, (*kept, done))
    for wanted, trigger, line in reasons:
        if wanted:
            return _yes(trigger, line, kept)
    return Decision("wait", facts.trigger, "no rule asks for it", kept)


def _yes(trigger: Trigger, reason: str, kept: tuple[str, ...]) -> Decision:
    return Decision("train", trigger, reason, kept if reason in kept else (reason, *kept))


_Rule = tuple[bool, Trigger, str]  # whether it asks for a training, as what, in words


def _new(item: ClassFacts) -> bool:
    return item.new_normals is None or item.new_normals > 0


def _samples(facts: Facts, limits: Retrain) -> list[_Rule]:
    rules: list[_Rule] = []
    for item in facts.classes:
        held = f"; {item.in_review} held back" if item.in_review else ""
        if not item.champion:
            rules.append((True, "samples", f"{item.category}: no champion yet{held}"))
        elif item.new_normals is None:
            rules.append(
                (True, "samples", f"{item.category}: what version {item.champion} has seen is not known{held}")
            )
        else:
            enough = item.new_normals >= limits.min_new
            most = "up to " if item.unseen else ""
            text = f"{item.category}: {most}{item.new_normals} new normals since version {item.champion}"
            others = {"the test split": item.new_tests, "the gate": item.new_gates}
            more = " and ".join(f"{n} for {place}" for place, n in others.items() if n)
            wanted = f"{'at least' if enough else 'wanted'} {limits.min_new}"
            rules.append((enough, "samples", f"{text}, {wanted}{f'; {more}' if more else ''}{held}"))
    return rules


def _ages(facts: Facts, limits: Retrain) -> list[_Rule]:
    rules: list[_Rule] = []
    for item in facts.classes:
        if item.age_days is None:
            continue
        if item.age_days < 0:
            text = f"{item.category}: version {item.champion} is dated {-item.age_days:.1f} days in the future: "
            rules.append((False, "schedule", text + "a clock was wrong, so its age says nothing"))
            continue
        old, new = item.age_days > limits.max_age_days, _new(item)
        text = (
            f"{item.category}: version {item.champion} is {item.age_days:.1f} days old, limit {limits.max_age_days:g}"
        )
        rules.append((old and new, "schedule", text + ("; nothing new to learn" if old and not new else "")))
    return rules


def _drift(facts: Facts, limits: Retrain) -> list[_Rule]:
    if not facts.drift and facts.trigger != "drift":
        return []
    text = f"drift: {facts.drift or 'reported'}"
    if not limits.on_drift:
        return [(False, "drift", f"{text}; retrain.on_drift is false")]
    new = any(map(_new, facts.classes))
    return [(new, "drift", text + ("" if new else "; nothing new to learn: put new normals into the landing area"))]
