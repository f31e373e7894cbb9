"""How large the installation is, what its largest parts are, and what who only scores could leave out."""

from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.bench.rows import Row, Size

# What each needs: requirements as of pyproject.toml, or of what an exported detector's script imports.
PARTS = {
    "the library alone (`pip install pvqae`: train, score, evaluate)": ("pvqae",),
    "library and service (`pvqae[serve]`)": ("pvqae[serve]",),
    "library and flows (`pvqae[flows,validation]`)": ("pvqae[flows,validation]",),
    "an exported detector's run.py (no torch, no pvqae)": ("numpy", "onnxruntime", "pillow"),
}
LARGEST = 4  # packages that a row names


def installation(size: Size) -> list[Row]:
    every = {canonicalize_name(found.metadata["Name"]): megabytes(found) for found in distributions()}
    rows = [row("installation of `make run` and `make test`, without Python", every, every)]
    return rows + [row(what, every, needed(asked)) for what, asked in PARTS.items()]


def row(what: str, every: dict[str, float], names: Iterable[str]) -> Row:
    own = {name: every.get(name, 0.0) for name in names}
    total, whole = sum(own.values()), sum(every.values())
    largest = sorted(own, key=lambda name: -own[name])[:LARGEST]
    note = f"{len(own)} packages; " + ", ".join(f"{name} {own[name]:.0f}" for name in largest)
    against = "" if total == whole else f"everything, {whole:.0f} MB"
    return Row(what, f"{total:.0f} MB", against, None if total == whole else total / whole, "", None, note)


def megabytes(found: Distribution) -> float:
    """Of a package's files, byte code included."""
    sizes = (path.locate() for path in found.files or ())
    return sum(path.stat().st_size for path in sizes if path.is_file()) / 1e6


def needed(asked: Iterable[str]) -> set[str]:
    """Names of all packages that requirements bring along."""
    found: set[str] = set()
    waiting = [
        (requirement.name, extra) for requirement in map(Requirement, asked) for extra in ("", *requirement.extras)
    ]
    seen = set()
    while waiting:
        if (pair := waiting.pop()) in seen:
            continue
        seen.add(pair)
        found.add(canonicalize_name(pair[0]))
        waiting += brought(*pair)
    return found


def brought(name: str, extra: str) -> Iterator[tuple[str, str]]:
    """Name and extra of what a package with an extra requires here."""
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, requires):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((requirement.name, one) for one in ("", *requirement.extras))
