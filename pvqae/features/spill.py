"""Many rows without as much memory: above a bound they lie in a nameless file, which the system reads as it is asked.

One network for all classes sees every class's views, a megabyte each; 3,600 of them would fill a small machine twice.
"""

import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

BOUND = 2**28  # bytes of one column that are kept in memory


class Column:
    """Tensors of one shape but for the first axis, appended one by one and read as one."""

    def __init__(self, folder: Path | None = None, bound: int = BOUND):
        """`folder` takes the file (None: where the system puts temporary files); it is gone when nobody reads it."""
        self._folder, self._bound, self._size = folder, bound, 0
        self._parts: list[Tensor] = []
        self._file: IO[bytes] | None = None

    def append(self, rows: Tensor) -> None:
        self._parts.append(rows.contiguous())
        self._size += rows.numel() * rows.element_size()
        if self._size > self._bound:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it lives as long as its tensor
        for part in self._parts:
            self._file.write(part.numpy().tobytes())
        self._parts = [self._parts[-1][:0]]  # dtype and shape

    def tensor(self) -> Tensor:
        """All rows, once: nothing can be appended later."""
        if self._file is None:
            return torch.cat(self._parts)
        self._write()
        last = self._parts[-1]
        with self._file as file:  # what is mapped stays without it
            file.flush()
            rows = np.memmap(file, last.numpy().dtype, "c")  # copy on write: torch warns of read-only arrays
        return torch.from_numpy(rows.reshape(-1, *last.shape[1:]))
