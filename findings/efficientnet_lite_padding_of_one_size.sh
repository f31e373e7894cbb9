#!/usr/bin/env bash
# efficientnet-lite-pytorch 0.1.0 with torch 2.13.0 (CPU, Python 3.11): lite0 and lite1 at 320 px.
#
# Guess: like every convolutional network it takes images of any size, and "SAME" padding is that of the size it is
# given; if lite0 is right at 320 px, lite1 is.
# Seen: padding is fixed when the network is made, for the nominal size of each network (lite1: 240). lite0 at 320 px
# has the features of true SAME padding all the same, because 224 and 320 halve evenly alike. lite1 at 320 px accepts the
# images, gives maps of the right shape, and features that are half of the largest value away from those of true SAME
# padding with the same tensors. At its own 240 px both agree.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 efficientnet-lite-pytorch==0.1.0 numpy==2.4.6

cat > "$place/look.py" <<'PY'
import torch
from efficientnet_lite_pytorch import EfficientNet, utils


def pad_as_given(module):
    """Put the package's own convolution that pads at run time in place of the one that pads for one size."""
    for name, child in module.named_children():
        if isinstance(child, utils.Conv2dStaticSamePadding):
            bias = child.bias is not None
            sizes = child.in_channels, child.out_channels, child.kernel_size, child.stride
            other = utils.Conv2dDynamicSamePadding(*sizes, groups=child.groups, bias=bias)
            other.load_state_dict(child.state_dict())
            setattr(module, name, other)
        else:
            pad_as_given(child)


for name, size in (("lite0", 224), ("lite0", 320), ("lite1", 240), ("lite1", 320)):
    torch.manual_seed(0)
    network, image = EfficientNet.from_name(f"efficientnet-{name}").eval(), torch.rand(1, 3, size, size)
    with torch.no_grad():
        found = network.extract_features(image)
        pad_as_given(network)
        expected = network.extract_features(image)
    away = float((found - expected).abs().max() / expected.abs().max())
    print(name, size, tuple(found.shape) == tuple(expected.shape), "equal" if away < 1e-5 else f"away: {away > 0.2}")
PY
found=$("$place/venv/bin/python" -W ignore "$place/look.py")
echo "$found"
expected="lite0 224 True equal
lite0 320 True equal
lite1 240 True equal
lite1 320 True away: True"
if [ "$found" != "$expected" ]; then
  echo "CHANGED: expected"; echo "$expected"; exit 1
fi
