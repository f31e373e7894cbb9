"""Unfinished training on disk: one safetensors file, written beside and renamed; no pickle, no random state.

Randomness comes from the seed and the step (`pvqae.core.seeding`), so a resumed run draws what an
uninterrupted one draws.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pvqae.core.tensors import checksum, parse_notes, parse_tensors

MAX_SECONDS = 10.0  # of work that a kill may cost


def _optimiser_tensors(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{name}.{i}.{key}": torch.as_tensor(value) for i, slot in state.items() for key, value in slot.items()}


def _restore_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(name + "."):
            index, slot = key[len(name) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def save(path: Path, network: nn.Module, optimisers: dict[str, torch.optim.Optimizer], facts: dict[str, Any]) -> None:
    """Write everything that the next step needs; `facts` are small JSON values."""
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    for name, optimiser in optimisers.items():
        tensors |= _optimiser_tensors(name, optimiser)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    # Lazy copies: safetensors refuses tensors that share memory, as tied buffers after a first EMA step do.
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(facts)
    save_file(whole, part, {"facts": text, "sha256": checksum(whole, text)})
    os.replace(part, path)


def restore(path: Path, network: nn.Module, optimisers: dict[str, torch.optim.Optimizer]) -> dict[str, Any] | None:
    """Load into `network` and `optimisers`; the facts, or None where there is no (readable) checkpoint."""
    try:
        data = path.read_bytes()
        tensors, written = parse_tensors(data), parse_notes(data)
        if written["sha256"] != checksum(tensors, written["facts"]):
            return None  # a flipped bit would go on into every later step
        facts = dict(json.loads(written["facts"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # half a file can't be: it is renamed into place; anything else is not ours, begin anew
    own = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    if _shapes(own) != _shapes(network.state_dict()):
        return None
    network.load_state_dict(own)
    for name, optimiser in optimisers.items():
        _restore_optimiser(name, optimiser, tensors)
    return facts


class Timer:
    """Says when the next checkpoint is due."""

    def __init__(self, seconds: float = MAX_SECONDS):
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


class History:
    """Rows of numbers, one JSON object a line, without wall-clock: the same run writes the same bytes."""

    def __init__(self, path: Path, before: int | None = None):
        """Keep the rows of steps below `before` (a resumed run repeats the others); None keeps none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text("utf-8").splitlines() if path.exists() and before else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] < (before or 0)]
        path.write_text("".join(line + "\n" for line in kept), "utf-8")
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
