#!/usr/bin/env bash
# openvino 2026.4.1 with openvino-telemetry 2025.2.0, which it depends on (Linux x86-64, Python 3.11).
#
# Guess: usage reports belong to the model conversion tools, which ask for consent; importing the runtime to compile a
# model on a processor reports nothing and writes nothing.
# Seen: the mere `import openvino` makes a client id and its statistics in the user's home and hands an event
# "import" to the sender, without a question; nothing was converted, compiled or read. The switches are the command
# `opt_in_out --opt_out` and environments of CI systems, not a setting of the runtime. Where the package is not
# importable, openvino uses a stub that it brings itself, and the home stays empty: who ships openvino in a product that
# reports nothing can hide openvino_telemetry while openvino is imported.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6

# No connection is let through; what would be sent is printed instead. CI systems switch reports off: not here.
cat > "$place/look.py" <<'PY'
import sys
from pathlib import Path

if "hidden" in sys.argv:
    sys.modules["openvino_telemetry"] = None
else:
    from openvino_telemetry.utils.sender import TelemetrySender

    def keep(self, backend, message):
        print("handed to the sender:", *(event["name"] for event in message["events"]))

    TelemetrySender.send = keep
import openvino

files = sorted(path.name for path in Path.home().rglob("*") if path.is_file())
print("files in the home:", ", ".join(files) or "none")
PY
look() {
  rm -rf "$place/home"; mkdir "$place/home"
  env -i PATH="$PATH" HOME="$place/home" "$place/venv/bin/python" "$place/look.py" "$@" 2>&1
}
found=$(look; echo ---; look hidden)
echo "$found"
expected="handed to the sender: import
files in the home: openvino_ga_cid, stats
---
files in the home: none"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
