#!/usr/bin/env bash
# anomalib 2.7.0 (the projection before PatchCore's coreset), torch 2.13.0 (CPU), scikit-learn 1.9.1, Python 3.11.
#
# Guess: the sparse random projection before the greedy coreset makes vectors shorter, as PatchCore's paper has it, or
# leaves them as they are; a light network with few channels gains less by it, but loses nothing.
# Seen: the number of dimensions follows from the number of patches alone (Johnson-Lindenstrauss with eps 0.9) and knows
# nothing of the channels. 67,200 patches of 42 images at 320 px of a network with 40 + 112 channels become vectors of
# 274 numbers, 1.8 times as long, with distances that are off by several per cent; 210 images make 314. scikit-learn's
# projection of the same name and eps refuses that with an error. The search then takes longer than on the features
# themselves and chooses by distorted distances.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
pip() { "$place/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1
pip --no-deps anomalib==2.7.0 # its module is loaded by itself: the other eighty packages have no part in it

cat > "$place/look.py" <<'PY'
import sys
import sysconfig
from importlib import util
from pathlib import Path

import torch
from sklearn.random_projection import SparseRandomProjection as Other

file = Path(sysconfig.get_path("purelib"), "anomalib/models/components/dimensionality_reduction/random_projection.py")
spec = util.spec_from_file_location("random_projection", file)
module = util.module_from_spec(spec)
sys.modules["random_projection"] = module
spec.loader.exec_module(module)

torch.manual_seed(0)
for images in (42, 210):
    patches = torch.randn(images * 40 * 40, 152)
    made = module.SparseRandomProjection(eps=0.9, random_state=0)
    made.fit(patches)
    wide = made.transform(patches[:2000])
    ratio = torch.cdist(wide[:1000], wide[1000:]) / torch.cdist(patches[:1000], patches[1000:2000])
    off = float(ratio.std() / ratio.mean())
    print(len(patches), "patches:", patches.shape[1], "channels become", wide.shape[1], "distances off:", off > 0.02)
try:
    Other(eps=0.9).fit(torch.randn(67200, 152).numpy())
except ValueError as error:
    print("scikit-learn:", "larger than the original space" in str(error))
PY
found=$("$place/venv/bin/python" -W ignore "$place/look.py")
echo "$found"
expected="67200 patches: 152 channels become 274 distances off: True
336000 patches: 152 channels become 314 distances off: True
scikit-learn: True"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
