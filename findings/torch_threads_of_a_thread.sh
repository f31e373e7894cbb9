#!/usr/bin/env bash
# torch 2.13.0 (CPU, OpenMP), Python 3.11.
#
# Guess: torch.set_num_threads is either for the whole process, or, as OpenMP keeps the number for each thread, for the
# thread that calls it, so a service that calls it first thing in each worker has settled the matter.
# Seen: neither. A thread that has computed before keeps its own number whatever others set. A new thread's number,
# although it has just set it, is replaced at its first parallel operation (or torch.get_num_threads) by what any thread
# of the process has set last. Asking torch.get_num_threads before or right after the call makes the number stay. Sums
# split over another number of threads differ in their last bits, so which thread came first decides about them.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$place/look.py" <<'PY'
import threading

import torch


def seen(looks_first: bool) -> str:
    torch.set_num_threads(4)
    mine, theirs, found = threading.Event(), threading.Event(), []

    def work() -> None:
        if looks_first:
            torch.get_num_threads()
        torch.set_num_threads(2)
        mine.set()
        theirs.wait()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    mine.wait()
    torch.set_num_threads(3)  # in the main thread
    theirs.set()
    thread.join()
    return f"set 2, another thread set 3 then: {found[0]}; the other has {torch.get_num_threads()}"


print("new thread:", seen(False))
print("thread that has looked:", seen(True))
PY
found=$("$place/venv/bin/python" -W ignore "$place/look.py")
echo "$found"
expected="new thread: set 2, another thread set 3 then: 3; the other has 3
thread that has looked: set 2, another thread set 3 then: 2; the other has 3"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
