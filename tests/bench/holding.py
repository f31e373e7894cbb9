"""A process of its own that holds a detector: how much memory that takes above the backbone alone."""

import ctypes
import gc
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def measured(kind: str, detector: Path, image: Path) -> int:
    """Bytes that a process's peak grows by when it loads the `detector`, a bundle or a bank, and scores `image`."""
    command = [sys.executable, "-m", "tests.bench.holding", kind, str(detector), str(image)]
    return int(subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout)


def _bundle(folder: Path, image: Path) -> object:
    from pvqae.inference import bundle

    found = bundle.load(folder)
    return found, found.score(image).anomaly_map


def _bank(file: Path, image: Path) -> object:
    from safetensors.torch import load_file

    from flows.experiments.baselines import PatchCore

    x = load_file(file)
    one = PatchCore(x["mean"], x["deviation"], x["bank"].float())
    canvas, features, valid = _seen(image)
    return one, one.score(features, valid, canvas, "")


def _seen(image: Path):
    from pvqae.core import config
    from pvqae.inference.scoring import through
    from pvqae.model import backbones
    from pvqae.samples import geometry, images

    params = config.load(PROJECT / "params.yaml", ())
    canvas = geometry.canvas(images.read(image), params.image)
    return canvas, *through(backbones.make(params.model).eval(), canvas)


def main() -> None:
    import torch

    from flows.experiments import baselines  # noqa: F401 - imported in both cases
    from pvqae.inference import bundle  # noqa: F401

    kind, detector, image = sys.argv[1], *map(Path, sys.argv[2:])
    torch.set_num_threads(1)
    with torch.no_grad():
        _seen(image)  # the backbone has worked once
        before = settled()
        {"bundle": _bundle, "bank": _bank}[kind](detector, image)
        print(peak() - before)


def settled() -> int:
    """Bytes of resident memory after freed memory went back to the system; the peak is counted from here."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Bytes of resident memory, at most since `settled`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
