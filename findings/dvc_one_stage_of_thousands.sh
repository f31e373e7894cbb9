#!/usr/bin/env bash
# DVC 3.67.1, ruamel.yaml 0.19.1 with its C parser (ruamel-yaml-clib 0.2.15) installed, Python 3.11.
#
# Guess: `dvc repro -s` of one small stage costs about the same whatever else dvc.lock names: it looks up one entry, and
# writes one. At 4,000 entries (3 MB) the whole file is parsed in a tenth of a second or two by the C parser.
# Seen: every stage that ends reads the whole lock and writes it again, in ruamel's round-trip mode, which is pure Python
# with or without the C parser, to keep comments that a lock file does not have. A stage that runs `echo` then takes
# more than ten seconds longer than beside 4 entries (41 to 72 s seen in December 2026), nearly all of it on entries that
# nobody asked for. A matrix of a thousand classes with four stages spends about a day in it.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check \
  dvc==3.67.1 ruamel-yaml==0.19.1 ruamel-yaml-clib==0.2.15 pyyaml

cat > "$place/lock.py" <<'PY'
import sys

import yaml


def entry(number: int) -> dict:
    deps = [{"path": f"part_{i}", "hash": "md5", "md5": f"{number + i:032x}.dir", "size": 1, "nfiles": 9} for i in range(6)]
    params = {"params.yaml": {"train": {f"key_{i}": i / 7 for i in range(20)}}}
    return {"cmd": f"train {number}", "deps": deps, "params": params, "outs": deps[:1]}


count = int(sys.argv[1])
stages = {f"train@class_{number:04}": entry(number) for number in range(count)}
with open("dvc.lock", "w") as file:
    yaml.dump({"schema": "2.0", "stages": stages}, file, sort_keys=False, Dumper=yaml.SafeDumper)
PY
export DVC_NO_ANALYTICS=1
for count in 4 4000; do
  mkdir "$place/$count"; cd "$place/$count"
  "$place/venv/bin/dvc" init -q --no-scm
  printf 'stages:\n  one:\n    cmd: echo 1 > one\n    outs: [one]\n' > dvc.yaml
  "$place/venv/bin/python" "$place/lock.py" "$count"
  TIMEFORMAT=%U; { time "$place/venv/bin/dvc" repro -q -f -s one; } 2> seconds
  echo "$count entries: $(tail -n 1 seconds) s"
done
cd "$place"
if ! awk -v few="$(tail -n 1 4/seconds)" -v many="$(tail -n 1 4000/seconds)" 'BEGIN { exit !(many > few + 10) }'; then
  echo "CHANGED: expected more than ten seconds of difference"; exit 1
fi
