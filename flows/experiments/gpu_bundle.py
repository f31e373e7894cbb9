"""Pack one class and the source for a machine that has a GPU and nothing else of this project.

python -m flows.experiments.gpu_bundle CLASS [--data FOLDER]        here: writes .pvqae/gpu/CLASS
python -m flows.experiments.gpu CLASS_FOLDER ...                    there, inside the folder: see `gpu`
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from flows.experiments import subjects
from flows.experiments.run import datasets_root
from pvqae.core import config, files
from pvqae.core.errors import ConfigError, DataError, PvqaeError
from pvqae.core.files import whole_folder, write_text
from pvqae.samples import geometry, images, manifest

LONGEST = 320  # pixels: a model of 256 px squashes within 0.8 to 1.25, so it loses nothing
LIMIT = 64  # millions of bytes, what such a machine takes
CODE = ("pvqae", "flows")


def pack(root: Path, subject: subjects.Subject, limit: float = LIMIT) -> Path:
    """Write .pvqae/gpu/<class> whole: source, params.yaml, manifest.csv and images/. Returns the folder.

    Raises `DataError` where that is more than `limit` million bytes.
    """
    out = root / ".pvqae" / "gpu" / subject.name
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as part:
        bits = config.load(root / "params.yaml").image.bits
        packed = [_small(row, subject.root, part, bits) for row in subject.rows.to_dict("records")]
        manifest.write(pd.DataFrame(packed, columns=subject.rows.columns), part / "manifest.csv")
        for name in CODE:
            shutil.copytree(root / name, part / name, ignore=shutil.ignore_patterns("__pycache__"))
        write_text(part / "params.yaml", (root / "params.yaml").read_text("utf-8"))
        size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file()) / 1e6
        if size > limit:
            raise DataError(
                f"{subject.name}: expected at most {limit} MB, found {size:.0f} MB for {len(packed)} images; pack a "
                "class with a share of its groups, see flows.experiments.subjects.KNOWN"
            )
    return out


def _small(row: dict[Any, Any], source: Path, folder: Path, bits: images.Bits) -> dict[str, Any]:
    """Write the row's image, and its mask if it has one, small; returns the row of the copies."""
    pixels = images.read(row["path"], source, bits)
    height, width = _size(pixels.shape)
    eight = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
    path = f"images/{row['sample_id']}.png"
    images.write(folder / path, (np.asarray(eight) / 255).astype(np.float32), channels=int(row["channels"]))
    changed: dict[str, Any] = {"path": path, "sha256": files.digest(folder / path), "height": height, "width": width}
    if row["mask_path"]:
        changed["mask_path"] = f"images/{row['sample_id']}_mask.png"
        mask = geometry.resize_mask(images.read_mask(row["mask_path"], root=source), height, width)
        images.write(folder / changed["mask_path"], mask)
    return {**row, **changed, "bit_depth": 8}


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", metavar="CLASS", help=", ".join(subjects.KNOWN))
    parser.add_argument("--data", default="", help="folder with mvtec and mtsd; default $PVQAE_DATASETS")
    given, root = parser.parse_args(), Path.cwd()
    try:
        if given.name not in subjects.KNOWN:
            raise ConfigError(f"class {given.name}: expected one of {', '.join(subjects.KNOWN)}")
        params = config.load(root / "params.yaml")
        work = root / ".pvqae" / "experiments" / "shared" / "data"
        subject = subjects.load(given.name, datasets_root(root, given.data), work, params)
        print(pack(root, subject))
    except PvqaeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
