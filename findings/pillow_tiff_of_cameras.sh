#!/usr/bin/env bash
# Pillow 13.0.0 reading TIFFs that tifffile 2026.3.3 writes and reads (uncompressed, baseline tags), numpy 2.4.6.
#
# Guess: of the kinds that line-scan and X-ray cameras write, Pillow returns the pixels that are in the file, or refuses.
# Where WhiteIsZero means that dark is bright, it turns the values or leaves them, but at every depth alike.
# Seen: no warning, no error, and other pixels. WhiteIsZero is turned at 8 bit and left at 16, so one camera set to two
# depths gives a picture and its negative. RGB of 16 bit in planes comes out as noise: the bytes of one plane are read as
# if they were planes of 8 bit (interleaved, it is reduced to its upper bytes). Unsigned 32 bit above 2^31 is negative,
# signed 8 bit is unsigned.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6

cat > "$place/look.py" <<'PY'
import sys

import numpy as np
import tifffile
from PIL import Image


def looked(name: str, values: np.ndarray, turned: bool = False, upper: bool = False, **tags: str) -> None:
    file = f"{sys.argv[1]}/{name.replace(' ', '_')}.tif"
    tifffile.imwrite(file, values, **tags)
    wanted = tifffile.imread(file)
    if tags.get("planarconfig") == "separate":
        wanted = np.moveaxis(wanted, 0, -1)
    assert np.array_equal(wanted, np.moveaxis(values, 0, -1) if "planarconfig" in tags else values)
    with Image.open(file) as image:
        found = np.asarray(image)
    kinds = {"as written": wanted, "its negative": np.iinfo(wanted.dtype).max - wanted, "its upper bytes": wanted >> 8}
    same = [kind for kind, like in kinds.items() if np.array_equal(found, like)]
    print(f"{name}: mode {image.mode}, {same[0] if same else 'other values'}")


draw = np.random.default_rng(0).integers
looked("grey 8 bit BlackIsZero", draw(0, 256, (6, 7), dtype=np.uint8), photometric="minisblack")
looked("grey 8 bit WhiteIsZero", draw(0, 256, (6, 7), dtype=np.uint8), photometric="miniswhite")
looked("grey 16 bit WhiteIsZero", draw(0, 2**16, (6, 7), dtype=np.uint16), photometric="miniswhite")
looked("RGB 16 bit interleaved", draw(0, 2**16, (6, 7, 3), dtype=np.uint16), photometric="rgb")
looked("RGB 16 bit in planes", draw(0, 2**16, (3, 6, 7), dtype=np.uint16), photometric="rgb", planarconfig="separate")
looked("grey 32 bit unsigned", draw(0, 2**32, (6, 7), dtype=np.uint32), photometric="minisblack")
looked("grey 8 bit signed", draw(-128, 128, (6, 7), dtype=np.int8), photometric="minisblack")
PY
found=$("$place/venv/bin/python" -W error "$place/look.py" "$place")
echo "$found"
expected="grey 8 bit BlackIsZero: mode L, as written
grey 8 bit WhiteIsZero: mode L, its negative
grey 16 bit WhiteIsZero: mode I;16, as written
RGB 16 bit interleaved: mode RGB, its upper bytes
RGB 16 bit in planes: mode RGB, other values
grey 32 bit unsigned: mode I, other values
grey 8 bit signed: mode L, other values"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
