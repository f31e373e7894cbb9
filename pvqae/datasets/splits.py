"""Who may learn from which image. Membership is a hash of the group, so adding images never moves an old one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pvqae.core.config import Shares
from pvqae.core.errors import DataError


@dataclass(frozen=True)
class Member:
    """What decides an image's split: its group (one physical part), its label, and the source's own split if any."""

    category: str
    group_id: str
    label: str  # normal | defect
    official: str | None  # train | test | gate | arrived | None


def fraction(salt: str, group_id: str) -> float:
    """A number in [0, 1), fixed by the two texts alone; the salt makes independent draws for the same group."""
    return int(hashlib.sha256(f"{salt}\0{group_id}".encode(errors="surrogateescape")).hexdigest()[:13], 16) / 16**13


def fold_of(group_id: str, folds: int) -> int:
    """Fold 0 .. folds-1 of a group, independent of its split."""
    return int(fraction("fold", group_id) * folds)


def _of_normals(group_id: str, shares: Shares, has_test: bool, arrived: bool) -> str:
    draw = fraction("split", group_id)
    gate = 0.0 if arrived else shares.gate
    bounds = [("calibrate", shares.calibrate), ("gate", gate), ("test", 0.0 if has_test else shares.test)]
    for split, share in bounds:
        if draw < share:
            return split
        draw -= share
    return "train"


def assign(members: Sequence[Member], shares: Shares) -> list[str]:
    """The split of each member, in order: train, calibrate, gate or test.

    A group is never divided. One with a defect, or with an image of an official test split, is test as a whole: the
    other exposures of a defective part are not normal. One with an image that the user set aside for the gate is gate.
    All others go by the hash of their group; they reach test only in categories without an official one, and gate only
    if they did not arrive later: what arrives has its share of the gate set aside before anything judges it.
    Raises `DataError` if the shares leave nothing for train.
    """
    if shares.calibrate + shares.gate + shares.test >= 1:
        raise DataError(f"data.shares: expected a sum below 1, found {shares}; lower one in params.yaml")
    has_test = {m.category for m in members if m.official == "test"}
    fixed = {m.group_id: "gate" for m in members if m.official == "gate"}
    fixed |= {m.group_id: "test" for m in members if m.official == "test" or (m.label == "defect" and not m.official)}
    return [
        fixed.get(m.group_id) or _of_normals(m.group_id, shares, m.category in has_test, m.official == "arrived")
        for m in members
    ]
