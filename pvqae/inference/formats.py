"""Formats of bundles: what this code reads, and how an older one is said in the words of today's.

2  (24 November 2026) codes of memories in half precision, memories numbered by level, whitened
3  the same codes as bytes in steps; the decoder in half precision
4  a decoder that no score comes from as bytes
5  memories by what they read, one of them spanning resolutions; weights of memories in place of chosen levels
6  a memory of places, which code of format 5 would pass over without a word
7  distances in units of their code's spacing, which code of format 6 would not divide by

Every older one holds all that today's scoring needs, so its scores stay: `upgraded` translates names, `convert` writes
the result as a bundle of today's format. Format 1, of half a day before registered versions, can't be read.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvqae.core.errors import FormatError
from pvqae.core.files import Sealed, seal_folder, whole_folder
from pvqae.inference.measures import STRIDES

if TYPE_CHECKING:
    from torch import Tensor

CURRENT = 7
_OLDER = (2, 3, 4, 5, 6)
CONFIG, STATISTICS = "config.json", "statistics.safetensors"


def check(found: object, where: Path) -> None:
    """Raise `FormatError` for a format that this code can't read."""
    if found in (*_OLDER, CURRENT):
        return
    text = f"{where}: expected bundle format {_OLDER[0]} to {CURRENT}, found {found}"
    if isinstance(found, int) and found < CURRENT:
        raise FormatError(f"{text}, which is read no more; train the class again", older=True)
    raise FormatError(f"{text}; install the version of pvqae that made it, or a newer one")


def upgraded(facts: dict[str, Any], tensors: "Mapping[str, Tensor]") -> "tuple[dict[str, Any], Mapping[str, Tensor]]":
    """Return config and statistics of a bundle of a readable format as today's would say them."""
    if facts["format"] == CURRENT:
        return facts, tensors
    if facts["format"] in (5, 6):
        return {**facts, "format": CURRENT}, tensors
    renamed = _renamed(tensors)
    if facts["format"] == 2:  # codes as they are, in steps of one
        for name in [name for name in renamed if name.startswith("memory.") and name.endswith(".codes")]:
            codes = renamed[name]
            renamed[name.removesuffix("codes") + "step"] = codes.new_ones(codes.shape[1]).float()
    return {**facts, "format": CURRENT, "score": _score(facts)}, renamed


def _renamed(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors of an older bundle, which numbers the memories of its levels, by today's names."""
    numbered = re.compile(r"^(normal\.|)memory_(\d)\.(\w+)$")

    def today(found: re.Match[str]) -> str:
        prefix, number, field = found.groups()
        return f"{prefix or 'memory.'}{STRIDES[int(number)]}.{'scale' if field == 'whitening' else field}"

    return {numbered.sub(today, name): value for name, value in tensors.items()}


def _score(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the score of an older bundle: each level counts as much as the others, or not at all."""
    score, strides = dict(facts["score"]), STRIDES[: facts["model"]["levels"]]
    first = {"all": 0, "finer": -2, "finest": -1}
    for use in ("image", "map"):
        score[use] = dict.fromkeys(strides[first[score.pop(f"{use}_levels")] :], 1.0)
    return score


def convert(files: Sealed, out: Path, repair: str) -> str:
    """Write the bundle in `files` to the new folder `out` in today's format; return the sha256 of what was written.

    Weights, card and profile stay byte for byte. Raises `FormatError` where its format can't be read.
    """
    from safetensors.torch import save_file

    facts = files.json(CONFIG, repair)
    check(facts.get("format"), files.folder)
    facts, tensors = upgraded(facts, files.tensors(STATISTICS))
    with whole_folder(out) as part:
        for name, data in files.files.items():
            (part / name).write_bytes(data)
        save_file({name: value.contiguous() for name, value in tensors.items()}, part / STATISTICS)
        text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n"
        (part / CONFIG).write_text(text, "utf-8")
        for file in part.iterdir():
            file.chmod(0o644)  # safetensors makes them private to the user
        return seal_folder(part)
