"""Which classes share a budget prior (METHOD section 4): names alone, for a flow that only asks what changed."""

from collections.abc import Callable

Grouping = Callable[[list[str]], dict[str, list[str]]]


def per_class(classes: list[str]) -> dict[str, list[str]]:
    """One prior per class; needs the class at inference."""
    return {name: [name] for name in classes}


def universal(classes: list[str]) -> dict[str, list[str]]:
    """One prior for all classes."""
    return {"all": list(classes)}


def clustered(classes: list[str]) -> dict[str, list[str]]:
    """`prior.clusters` priors for all classes, made in one stage and told apart without a label (`Clustered`)."""
    return universal(classes)


GROUPINGS: dict[str, Grouping] = {"per_class": per_class, "universal": universal, "clustered": clustered}
