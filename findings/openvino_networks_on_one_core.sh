#!/usr/bin/env bash
# openvino 2026.4.1 (CPU), numpy 2.4.6, Python 3.11, Linux on x86-64 with two cores or more.
#
# Guess: INFERENCE_NUM_THREADS 1 with NUM_STREAMS 1 gives single-threaded inference that parallelises from outside: two
# threads with a compiled network each, or two processes, use two cores.
# Seen: the one thread is tied to a core by default, and every network and process picks the same one. Two at once take
# as long as one after the other, on a machine with idle cores, without a warning; only the operating system's view of
# busy cores tells. With ENABLE_CPU_PINNING false they take about half. (A single network with two streams also does.)
set -euo pipefail
if [ "$(nproc)" -lt 2 ]; then echo "needs two cores"; exit 1; fi
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6
"$place/venv/bin/pip" install -q --disable-pip-version-check --no-deps openvino==2026.4.1 # without its usage reports

cat > "$place/look.py" <<'PY'
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np

silent = types.ModuleType("openvino_telemetry")
silent.Telemetry = type("Telemetry", (), {"__init__": lambda *_, **__: None, "__getattr__": lambda *_: lambda *__, **___: None})
silent.__path__ = []
sys.modules["openvino_telemetry"] = silent
import openvino
from openvino import opset13 as ops

IMAGE = np.random.default_rng(0).random((1, 32, 128, 128), dtype=np.float32)


def request(pinned: bool):
    image = ops.parameter(list(IMAGE.shape), np.float32)
    x = image
    for seed in range(6):
        weight = np.random.default_rng(seed).random((32, 32, 3, 3), dtype=np.float32) / 300
        x = ops.relu(ops.convolution(x, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1]))
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {} if pinned else {"ENABLE_CPU_PINNING": False}
    return openvino.Core().compile_model(openvino.Model([x], [image], "net"), "CPU", settings).create_infer_request()


def repeated(mine, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        mine.infer([IMAGE])
    return time.perf_counter() - start


def alone_in_a_process(pinned: bool, count: int, start: float) -> float:
    mine = request(pinned)
    repeated(mine, 5)
    time.sleep(max(0.0, start - time.time()))
    return repeated(mine, count)


def main() -> None:
    for pinned in (True, False):
        requests = [request(pinned), request(pinned)]
        count = max(10, int(1.5 / (repeated(requests[0], 10) / 10)))
        one = min(repeated(requests[0], count) for _ in range(3))
        with ThreadPoolExecutor(2) as pool:
            threads = min(max(pool.map(repeated, requests, [count] * 2)) for _ in range(3))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            start = time.time() + 5
            processes = max(pool.map(alone_in_a_process, [pinned] * 2, [count] * 2, [start] * 2))
        words = [f"two {what} share one core: {took > 1.6 * one}" for what, took in (("threads", threads), ("processes", processes))]
        print(f"{'default' if pinned else 'ENABLE_CPU_PINNING false'}: {', '.join(words)}", flush=True)
        print(f"  {one:.2f} s alone, {threads:.2f} s in two threads, {processes:.2f} s in two processes", file=sys.stderr)


if __name__ == "__main__":
    main()
PY
found=$("$place/venv/bin/python" -W ignore "$place/look.py")
echo "$found"
expected="default: two threads share one core: True, two processes share one core: True
ENABLE_CPU_PINNING false: two threads share one core: False, two processes share one core: False"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
