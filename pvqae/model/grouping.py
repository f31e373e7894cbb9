"""Which classes share a budget prior (METHOD section 4)."""

from collections.abc import Callable

Grouping = Callable[[list[str]], dict[str, list[str]]]


def per_class(classes: list[str]) -> dict[str, list[str]]:
    """One prior per class; needs the class at inference."""
    return {name: [name] for name in classes}


def universal(classes: list[str]) -> dict[str, list[str]]:
    """One prior for all classes."""
    return {"all": list(classes)}


GROUPINGS: dict[str, Grouping] = {"per_class": per_class, "universal": universal}
