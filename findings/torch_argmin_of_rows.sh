#!/usr/bin/env bash
# torch 2.13.0 (CPU), numpy 2.4.6, Python 3.11, one thread of an x86-64 processor with AVX2 or more.
#
# Guess: the nearest of 2,048 codes for each of 400 cells is Tensor.min(dim=1) or argmin of a table of distances that is
# in the cache; it reads 3 MB, as Tensor.amin does, and costs next to nothing beside the product that made the table.
# Seen: with the place of the minimum it takes more than ten times as long as without (0.9 against 0.04 ms), because the
# reduction with indices is not vectorised. numpy.argmin on the same memory (Tensor.numpy() copies nothing) gives the
# same places in a tenth of the time. In a memory bank's search this was a third of all the time.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$place/look.py" <<'PY'
import time
from collections.abc import Callable

import torch

torch.set_num_threads(1)
table = torch.rand(400, 2048, generator=torch.Generator().manual_seed(0))


def milliseconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(100):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e3


assert (table.min(dim=1).indices.numpy() == table.numpy().argmin(axis=1)).all()
numpys, least = milliseconds(lambda: table.numpy().argmin(axis=1)), milliseconds(lambda: table.amin(dim=1))
for name, work in (("min", lambda: table.min(dim=1)), ("argmin", lambda: table.argmin(dim=1))):
    took = milliseconds(work)
    print(f"Tensor.{name}: five times numpy.argmin: {took > 5 * numpys}, five times Tensor.amin: {took > 5 * least}")
PY
found=$("$place/venv/bin/python" -W ignore "$place/look.py")
echo "$found"
expected="Tensor.min: five times numpy.argmin: True, five times Tensor.amin: True
Tensor.argmin: five times numpy.argmin: True, five times Tensor.amin: True"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
