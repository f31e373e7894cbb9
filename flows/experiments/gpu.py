"""Pack one class and the source for a machine that has a GPU and nothing else of this project, and train there.

    python -m flows.experiments.gpu --pack bottle            here: writes .pvqae/gpu/bottle
    python -m flows.experiments.gpu --work ../work --set model.backbone=vqgan --set train.steps=20000

The second command runs there, inside the packed folder. The same command goes on where the last one was killed: there
is a checkpoint every 10 s below --work, which must outlive the command and be outside the packed folder. The last one
prints the figures as JSON and writes them to --work.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from flows.experiments import subjects, trained
from flows.experiments.catalogue import CLASSES, Row
from flows.experiments.subjects import Subject
from pvqae.core import config, runtime
from pvqae.core.errors import ConfigError, DataError, PvqaeError
from pvqae.core.files import digest, whole_folder, write_text
from pvqae.samples import geometry, images, manifest

CODE = ("pvqae", "flows")
_LONGEST = 320  # pixels: a model of 256 px squashes within 0.8 to 1.25, so it loses nothing
_LIMIT = 64  # millions of bytes, what such a machine takes


def pack(root: Path, subject: Subject, limit: float = _LIMIT) -> Path:
    """Write .pvqae/gpu/<class> whole: source, params.yaml, manifest.csv and images/; returns the folder.

    Raises `DataError` where that is more than `limit` million bytes.
    """
    out = root / ".pvqae" / "gpu" / subject.name
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
                f"{subject.name}: {len(packed)} images and the source take {size:.0f} MB, expected at most {limit} MB; "
                "pack a class with a share of its groups, see flows/experiments/catalogue.yaml"
            )
    return out


def _small(row: dict[Any, Any], source: Path, folder: Path, bits: images.Bits) -> dict[str, Any]:
    """Write the row's image, and its mask if it has one, small; returns the row of the copies."""
    pixels = images.read(row["path"], source, bits)
    scale = min(1.0, _LONGEST / max(pixels.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    eight = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
    path = f"images/{row['sample_id']}.png"
    images.write(folder / path, (np.asarray(eight) / 255).astype(np.float32), channels=int(row["channels"]))
    changed: dict[str, Any] = {"path": path, "sha256": digest(folder / path), "height": height, "width": width}
    if row["mask_path"]:
        changed["mask_path"] = f"images/{row['sample_id']}_mask.png"
        mask = geometry.resize_mask(images.read_mask(row["mask_path"], root=source), height, width)
        images.write(folder / changed["mask_path"], mask)
    return {**row, **changed, "bit_depth": 8}


def _judge(folder: Path, work: Path, overrides: tuple[str, ...]) -> Row:
    """Return the figures of the class packed in `folder`; trained first, or trained on."""
    params = config.load(folder / "params.yaml", overrides)
    runtime.plan(params.compute, 1).apply()
    subject = Subject(folder.resolve().name, manifest.read(folder / "manifest.csv"), folder)
    figures = trained.train(params, subject, work).figures()
    write_text(work / "figures.json", json.dumps(figures, indent=1))
    return figures


def _pack_known(name: str, data: list[str]) -> Path:
    root = Path.cwd()
    if name not in CLASSES:
        raise ConfigError(f"no class {name}; choose one of {', '.join(CLASSES)}")
    work = root / ".pvqae" / "experiments" / "shared" / "data"
    params = config.load(root / "params.yaml")
    return pack(root, subjects.load_known(name, subjects.dataset_roots(data), work, params))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pack", metavar="CLASS", help=f"one of {', '.join(CLASSES)}")
    what.add_argument("--work", type=Path, help="folder of checkpoints and figures")
    parser.add_argument(
        "--data", action="append", default=[], help="folder with mvtec or mtsd; default $PVQAE_DATASETS"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a param")
    given = parser.parse_args()
    try:
        if given.pack:
            print(_pack_known(given.pack, given.data))
        else:
            print(json.dumps(_judge(Path.cwd(), given.work, tuple(given.set)), indent=1))
    except PvqaeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _main()
