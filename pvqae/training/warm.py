"""Going on from a champion's weights when new normals arrive, instead of from random ones.

The parent of network N is in data/parents/N, which is a dependency of the stage train@N:

bundle/   the champion's bundle; the fit `full` starts from its weights, codebook and scales
network/  what was trained with it: rows.csv (who learned from what), a weights file per fold, SHA256SUMS

A fit may only start from one that has never learned from a part that it now has to judge: its threshold would be that
of known parts. So each fold starts from its parent's fold, and only if all that the parent has learned from is still
among what the fit learns from. By induction that holds for a whole chain of parents.
"""

import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from pvqae.core import config
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import Sealed, read_folder, seal_folder, whole_folder
from pvqae.core.tensors import unpack
from pvqae.datasets import splits
from pvqae.training.run import Run

NONE = "none"
_LR_SHARE = 0.5  # of the peak learning rate from scratch
_FIXED = ("levels", "width", "code_dim", "codes")  # params of the model that decide what weights there are
# Those that decide what features they know.
_READ = ("backbone", "taps", "input", "mean", "deviation", "interpolation", "precision")
_BACK = "or start from scratch (without --warm)"


@dataclass(frozen=True, eq=False)
class Parent:
    """A checked parent. `rows`: the normals of its training, with columns category, group_id, split, fold."""

    bundle: Sealed
    network: Sealed
    rows: pd.DataFrame
    stranger: str = ""  # why no fit can start from it: it has learned from another backbone's features

    @classmethod
    def load(cls, folder: Path, params: config.Params) -> Self | None:
        """Return the parent in `folder`, None where that is no folder: from scratch.

        Raises `IntegrityError` where a file is not what its SHA256SUMS says, `ConfigError` where the parent is of
        another model or image size than `params`.
        """
        if not folder.is_dir():
            return None
        repair = f"place it again, {_BACK}"
        bundle, network = (read_folder(folder / part, "a parent's files", repair) for part in ("bundle", "network"))
        try:
            facts = bundle.json("config.json", repair)
            if not (stranger := _stranger(facts, params)):
                _check(folder, facts, params)
            rows = pd.read_csv(BytesIO(network.files["rows.csv"]), dtype=str, keep_default_na=False)
            return cls(bundle, network, rows.astype({"fold": int}), stranger)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise IntegrityError(f"{folder}: expected a parent's contents, found {error!r}; {repair}") from None

    @property
    def bundle_sha256(self) -> str:
        return self.bundle.sha256

    @property
    def sha256(self) -> str:
        """Of all that a fit can start from."""
        return f"{self.bundle.sha256}/{self.network.sha256}"

    def weights(self, fit: str) -> dict[str, Tensor]:
        """Return the weights of one fit by their names in weights files, in single precision."""
        if fit == splits.FULL:
            found = self.bundle.tensors("weights.safetensors")
        else:
            found = self.network.tensors(f"{fit}.safetensors")
        return unpack(found)

    def has(self, fit: str) -> bool:
        return (
            any(name.startswith("autoencoder.") for name in self.weights(fit))
            if fit == splits.FULL
            else (f"{fit}.safetensors" in self.network.files)
        )


def _stranger(facts: dict[str, Any], params: config.Params) -> str:
    """Return in which words the parent's backbone is another one than that of `params`; "" where it is the same."""
    theirs = config.Model(**facts["model"])
    other = [key for key in _READ if getattr(theirs, key) != getattr(params.model, key)]
    differs = ", ".join(f"model.{key} {getattr(theirs, key)}, here {getattr(params.model, key)}" for key in other)
    return f"the parent has another backbone: {differs}" if other else ""


def _check(folder: Path, facts: dict[str, Any], params: config.Params) -> None:
    wanted = {f"model.{key}": getattr(params.model, key) for key in _FIXED}
    found = {f"model.{key}": facts["model"].get(key) for key in _FIXED}
    image = params.image.model_dump(mode="json")
    wanted |= {f"image.{key}": value for key, value in image.items()}
    found |= {f"image.{key}": value for key, value in config.Image(**facts["image"]).model_dump(mode="json").items()}
    if other := [key for key in wanted if wanted[key] != found[key]]:
        differs = ", ".join(f"{key} {found[key]} there, {wanted[key]} in params" for key in other)
        raise ConfigError(f"{folder}: expected a parent of the same model, found {differs}; set them back, {_BACK}")


def keep(network: Path, out: Path) -> None:
    """Write the folder `out` with what a later training may start from, of a trained network's folder."""
    with whole_folder(out) as part:
        names = ["rows.csv", *(path.name for path in sorted(network.glob("fold-*.safetensors")))]
        for name in names:
            shutil.copyfile(network / name, part / name)
        seal_folder(part)


def place(bundle: Path, kept: Path, out: Path) -> None:
    """Make `out` the parent of a network: a bundle, and what `keep` wrote."""
    with whole_folder(out) as part:
        shutil.copytree(bundle, part / "bundle")
        shutil.copytree(kept, part / "network")


def obstacle(parent: Parent | None, rows: pd.DataFrame, fit: str) -> str:
    """Return why `fit` of `rows` (with a column `fold`) has to start from scratch; empty where it may start warm."""
    if parent is None:
        return "no parent"
    if parent.stranger:
        return parent.stranger
    if not parent.has(fit):
        return "the parent has no such fit, or no network at all"
    known = _groups(parent.rows[splits.learns(parent.rows, fit)])
    if lost := known - _groups(rows[splits.learns(rows, fit)]):
        category, group = min(lost)
        return (
            f"the parent has learned from {len(lost)} parts that this fit does not learn from, e.g. {category}/{group}"
        )
    return ""


def _groups(rows: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(rows["category"], rows["group_id"], strict=True))


def _steps(train: config.Train) -> int:
    """Return the steps of a warm start: as asked for, or a third of those from scratch."""
    return max(1, train.steps // 3) if train.warm_steps == "auto" else train.warm_steps


def settings(params: config.Params) -> config.Params:
    """Return the params of a fit that starts warm: it quantises from the first step at the budget's full price, chooses
    levels as at the end of a training, and moves at half the rate.
    """
    train = params.train
    changed: dict[str, object] = {
        "steps": _steps(train),
        "warmup": 0.0,
        "lr": train.lr * _LR_SHARE,
        "temperature": (train.temperature[1], train.temperature[1]),
        "schedule": train.schedule if train.schedule == "adaptive" else "constant",
    }
    return params.model_copy(update={"train": train.model_copy(update=changed)})


@torch.no_grad()
def begin(run: Run, weights: dict[str, Tensor]) -> None:
    """Put a parent's weights, codebook and scales into a run at step 0.

    Raises `ConfigError` where they don't fit, as those of another version of the code.
    """
    for prefix, module in (("autoencoder.", run.autoencoder), ("backbone.", run.backbone)):
        own = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
        if module is None:
            continue
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ConfigError(f"the parent's weights don't fit this network: {error}; start from scratch") from None
    codebook = run.autoencoder.codebook
    # Half precision overflows in sums of many vectors; they follow from codes and counts.
    codebook.counts.nan_to_num_(posinf=65504.0)
    codebook.sums.copy_(codebook.codes * codebook.counts[:, None])
