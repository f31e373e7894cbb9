"""When the mechanism has stopped to work: limits that training's warnings and the registration policy share."""

from collections.abc import Sequence

LEVEL_LIMIT = 0.98  # share of cells on one level above which the allocation has collapsed
USAGE_LIMIT = 0.05  # share of codes in use below which the codebook has collapsed


def of_levels(shares: Sequence[float]) -> bool:
    """Whether one of several levels has nearly all cells; a single level can't collapse."""
    return len(shares) > 1 and max(shares) > LEVEL_LIMIT


def of_codebook(usage: float) -> bool:
    return usage < USAGE_LIMIT
