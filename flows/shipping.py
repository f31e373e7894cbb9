"""What leaves the project: a self-contained bundle, and the proof that it scores as the evaluated one did."""

import json
import sys
from pathlib import Path

from flows import environment
from flows.supervise import Supervisor
from flows.workspace import Workspace
from pvqae.errors import PvqaeError

PARITY_ROWS = 8  # images scored again by the exported bundle, in a process that has nothing else in memory


def export(bundle: Path, out: Path) -> None:
    """A copy of `bundle` that carries the backbone's weights."""
    from pvqae.inference import bundle as bundles  # imports torch: only when something is registered

    bundles.export(bundle, out)


def parity(supervisor: Supervisor, space: Workspace, category: str, exported: Path, threads: int) -> float | None:
    """Largest difference between the evaluated scores and those of the exported bundle in a fresh process.

    None when no image was compared. As many `threads` as the evaluation had: another number sums in another order,
    which alone changes a score of 31 by 1.6e-5 (measured); with the same number the difference is 0.
    Raises `PvqaeError` when the check itself fails.
    """
    return compare(supervisor, space, exported, space.layout.class_report(category) / "images.csv", threads)


def compare(supervisor: Supervisor, space: Workspace, bundle: Path, images: Path, threads: int) -> float | None:
    """The same against any table `images` with sample_id, path and image_score."""
    command = [sys.executable, "-m", "pvqae.inference.parity", str(bundle), str(images)]
    command += ["--rows", str(PARITY_ROWS), "--data-root", str(space.layout.data)]
    environ = environment.for_stages(space.path) | {"OMP_NUM_THREADS": str(threads)}
    lines: list[str] = []
    code = supervisor.run(command, space.path, environ, lines.append)
    found = [line for line in lines if line.startswith("{")]
    if code or not found:
        raise PvqaeError(f"{images}: the parity check failed (exit {code}):\n" + "\n".join(lines[-15:]))
    figures = json.loads(found[-1])
    return float(figures["max_abs_difference"]) if figures["images"] else None
