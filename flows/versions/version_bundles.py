"""Bundles of registered versions: self-contained, proved to score as the evaluated one did, and fetched again."""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.adapters.tracking import Registry
from flows.core import environment
from flows.core.processes import Supervisor
from flows.workspace.workspace import Workspace
from pvqae.cli.processes import ADDRESS
from pvqae.core.errors import IntegrityError, PvqaeError
from pvqae.core.files import BACKBONE, SUMS
from pvqae.core.progress import working

if TYPE_CHECKING:
    from pvqae.core.files import Sealed

_PARITY_ROWS = 8  # images scored again by the exported bundle, in a process that has nothing else in memory


def export(supervisor: Supervisor, space: Workspace, bundle: Path, out: Path) -> None:
    """Make a copy of `bundle` that carries the backbone's weights."""
    _pvqae(supervisor, space, f"{bundle}: packing it for the registry", "pack", str(bundle), str(out))


def compare_scores(supervisor: Supervisor, space: Workspace, bundle: Path, images: Path, threads: int) -> float | None:
    """Return the largest difference between the scores of `images` and a bundle's in a fresh process.

    `images` is a table with sample_id, path and image_score; None when no image was compared. As many `threads` as its
    scores were made with: another number sums in another order, which alone changes a score of 31 by 1.6e-5 (measured);
    with the same number the difference is 0. Raises `PvqaeError` when the check itself fails.
    """
    words = ["parity", str(bundle), str(images), str(space.layout.data)]
    words += ["--rows", str(_PARITY_ROWS), "--threads", str(threads)]
    lines = _pvqae(supervisor, space, f"{images}: the parity check", *words)
    figures = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return float(figures["max_abs_difference"]) if figures["images"] else None


def _pvqae(supervisor: Supervisor, space: Workspace, what: str, *words: str) -> list[str]:
    """Return the output of `pvqae WORDS`, with the flow's own code: a workspace may have that of its last training.

    Raises `PvqaeError`, which begins with `what`, when it failed.
    """
    lines: list[str] = []
    command = [sys.executable, "-m", "pvqae.cli.main", *words]
    # Where a train flow has started its fork server; where none listens the command does the work itself.
    server = {ADDRESS: str((space.path / environment.FORKSERVER).relative_to(space.root))}
    with working(what):
        code = supervisor.run(command, space.root, environment.for_stages(space.root) | server, lines.append)
    if code:
        raise PvqaeError(f"{what} failed (exit {code}):\n" + "\n".join(lines[-15:]))
    return lines


def check_evaluated(bundle: Path, expected: str) -> "Sealed":
    """Return the files of a downloaded bundle. Raises `IntegrityError` unless they are those of the evaluated one.

    But for the backbone, which an export adds.
    """
    from pvqae.inference import bundle as bundles  # imports torch

    files = bundles.read(bundle)
    found = _without_backbone(files.files[SUMS])
    if found != expected:
        raise IntegrityError(
            f"{bundle}: expected the evaluated bundle {expected}, found {found}; train and register again"
        )
    return files


def evaluated_sha256(bundle: Path) -> str:
    """Return the hash by which `check_evaluated` knows a bundle, whether it carries its backbone or not."""
    return _without_backbone((bundle / SUMS).read_bytes())


def _without_backbone(sums: bytes) -> str:
    lines = sums.decode().splitlines(keepends=True)
    own = "".join(line for line in lines if not line.endswith(f"  {BACKBONE}\n"))
    return hashlib.sha256(own.encode()).hexdigest()


def fetch(registry: Registry, name: str, version: str, out: Path) -> Path:
    """Download a version's bundle into `out`, a new folder, and return its folder.

    Raises `IntegrityError` when it is not the one that was evaluated.
    """
    out.mkdir()
    bundle = registry.download(name, version, out)
    try:
        check_evaluated(bundle, registry.version_tags(name, version)["bundle_sha256"])
    except IntegrityError as error:
        raise IntegrityError(f"{name} version {version}: {error}") from None
    return bundle


def check_loads(bundle: Path) -> None:
    """Raise `IntegrityError` where this code can't make a detector of a fetched bundle: it may score nothing then."""
    from pvqae.inference import bundle as bundles  # imports torch

    bundles.load(bundle)


def format_of(registry: Registry, name: str, version: str) -> int:
    """Return the format of a version's bundle, which is loaded as scoring would. Raises as `check_version`."""
    from pvqae.inference import bundle as bundles
    from pvqae.inference import formats

    with tempfile.TemporaryDirectory() as place:
        folder = fetch(registry, name, version, Path(place) / version)
        check_loads(folder)
        return int(bundles.read(folder).json(formats.CONFIG, bundles.REPAIR)["format"])


def check_version(registry: Registry, name: str, version: str) -> None:
    """Fetch a version and load it as scoring would. Raises `RegistryError` or `IntegrityError` where that fails."""
    with tempfile.TemporaryDirectory() as place:
        check_loads(fetch(registry, name, version, Path(place) / version))
