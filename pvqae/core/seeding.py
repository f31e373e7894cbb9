"""Randomness by name: every draw comes from a generator made of the seed and what it is for.

No global state, hence nothing to save in a checkpoint: step 57 draws the same numbers after a resume.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed that depends on all arguments, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator; draw there and move, so that a GPU sees the same numbers."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *names))


def initialise(seed: int, *names: object) -> None:
    """Seed torch's global generator, from which layers draw their initial weights."""
    torch.manual_seed(derive(seed, *names))
