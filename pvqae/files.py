"""Outputs appear whole or not at all: written beside their place, then renamed."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends without an error."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part)
        raise
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write safetensors; makes the folder."""
    from safetensors.torch import save_file  # torch: not for those who write text

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(dict(tensors), part)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with `\\n` line ends; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8", newline="\n")
    os.replace(part, path)
