"""The verb `pvqae train N`: fit a network and its folds, resume what a kill left, hand over finished files only."""

import hashlib
import json
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from pvqae.core import config, files, runtime
from pvqae.core.errors import ConfigError, DataError, IntegrityError
from pvqae.core.files import seal, sealed, whole_folder, write_tensors, write_text
from pvqae.core.layout import Layout
from pvqae.core.tensors import parse_tensors
from pvqae.datasets import splits
from pvqae.features.examples import Examples, Learned, prepare, quantise
from pvqae.features.features import Store
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.model.backbones import RANGES, cells_of
from pvqae.samples import classes, manifest
from pvqae.training import loop, warm
from pvqae.training.run import FEW, start

_KEPT_COLUMNS = ["sample_id", "category", "group_id", "split", "fold"]


def _source_hash() -> str:
    """Return the hash of the code of this package: unfinished work of other code is never resumed."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def work_key(rows_file: Path, params: config.Params, parent: str = warm.NONE) -> str:
    """Name the work folder by rows, the params that the stage depends on, the code, and the hash of the parent."""
    whole = dict.fromkeys(("seed", "image", "model", "train", "calibration", "compute"), True)
    facts = params.model_dump(mode="json", include={**whole, "score": {"recon", "fusion"}})
    text = json.dumps([files.digest(rows_file), facts, _source_hash(), parent], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def train(layout: Layout, params: config.Params, name: str) -> None:
    """Fit network `name` (and one per fold); writes `models/<dataset>/networks/<name>/` whole or not at all."""
    begun = time.monotonic()
    known = classes.read(layout.classes_file, layout.name)
    known.network(name)
    plan = runtime.plan(params.compute, len(known.networks))
    plan.apply()
    rows = splits.assign_folds(manifest.read_rows(layout, layout.network_rows(name)), params.calibration)
    parent = warm.Parent.load(layout.root / known.parents[name], params)
    key = work_key(layout.network_rows(name), params, parent.sha256 if parent else warm.NONE)
    work = layout.work(f"network-{name}", key)
    print(f"network {name}: {len(rows)} normals, {plan}", flush=True)

    _check_folds(rows)
    backbone = backbones.make(params.model, size=params.image.size).to(plan.device).eval()
    quantise(backbone, rows, layout.data, params)
    if params.train.steps == 0:
        _leave_untrained(layout, params, name, rows, backbone)
        facts = {"train_seconds": round(time.monotonic() - begun, 1), "reading": {}}
        write_text(layout.timing(name), json.dumps(facts))
        return
    fits = splits.fits(rows) if params.score.reads_network else [splits.FULL]  # see `calibrate.calibrate`
    store = Store(layout.features, params.compute.cache_gb)
    examples = prepare(rows, layout.data, params.image, backbone, params.train.richness, plan.device, store)
    print(f"network {name}: {store.counts}", flush=True)
    logits: dict[str, Tensor] = {}
    finished: dict[str, bytes] = {}
    origins = {fit: warm.obstacle(parent, rows, fit) for fit in fits}
    for fit in fits:
        seen = examples.chosen(torch.from_numpy(splits.learns(rows, fit)))
        what = f"{name} {fit} ({fits.index(fit) + 1}/{len(fits)})"
        if parent and origins[fit]:
            print(f"{what}: from scratch: {origins[fit]}", flush=True)
        finished[fit] = _fit(params, plan, fit, seen, work / fit, what, None if origins[fit] else parent)
        logits[fit] = allocations(params, plan, parse_tensors(finished[fit]), examples)
    _hand_over(layout, name, work, finished, rows, examples, logits, _origin(parent, origins), backbone)
    facts = {"train_seconds": round(time.monotonic() - begun, 1), "reading": store.counts.facts()}
    write_text(layout.timing(name), json.dumps(facts))


def _leave_untrained(
    layout: Layout, params: config.Params, name: str, rows: pd.DataFrame, backbone: backbones.Backbone
) -> None:
    """Hand over a network of no steps: who would have taught it, and no weights. The memory needs none.

    Raises `ConfigError` where something that is asked for needs a trained network.
    """
    if params.score.reads_network or not backbone.spec.frozen:
        raise ConfigError(
            "train.steps: 0 trains no network, so the score can only come from the memory of frozen features: expected "
            "score.recon memory, score.fusion recon and a frozen model.backbone, found "
            f"{params.score.recon}, {params.score.fusion}, {params.model.backbone}; change them, or train.steps"
        )
    print(f"network {name}: train.steps is 0, nothing is trained; the memory alone will judge", flush=True)
    with whole_folder(layout.network(name)) as part:
        _describe(part, rows, _origin(None, dict.fromkeys(splits.fits(rows), "nothing is trained")), backbone)
        write_text(part / "history.jsonl", splits.NO_HISTORY)


def _check_folds(rows: pd.DataFrame) -> None:
    """Check that every fit learns each class from two groups at least: a part is judged by what the others taught.

    A class of so few normals that no rate is promised may have a single one. Raises `DataError` naming the class, the
    fit and what was found.
    """
    judged = sorted(set(rows["category"][~splits.few(rows)]))
    for fit in splits.fits(rows):
        seen = rows[splits.learns(rows, fit)].groupby("category")["group_id"].nunique()
        for category in judged:
            if seen.get(category, 0) < 2:
                raise DataError(
                    f"{category}, {fit}: expected training normals of at least 2 groups (parts), found "
                    f"{seen.get(category, 0)}; add images of other parts, or lower calibration.folds"
                )


def _origin(parent: warm.Parent | None, obstacles: dict[str, str]) -> dict[str, object]:
    """Return what each fit started from: the content of origin.json."""
    fits = {fit: f"scratch: {why}" if why else "parent" for fit, why in obstacles.items()}
    return {"parent_bundle_sha256": parent.bundle_sha256 if parent else warm.NONE, "fits": fits}


def _fit(
    params: config.Params,
    plan: runtime.Plan,
    fit: str,
    examples: Learned,
    folder: Path,
    what: str,
    parent: warm.Parent | None,
) -> bytes:
    """Train one fit, from scratch or from its parent, unless its finished weights are there already; returns their
    file's content.
    """
    finished = folder / "weights.safetensors"
    if (kept := sealed(finished)) is not None:
        print(f"{what}: finished before, kept", flush=True)
        return kept
    run = start(warm.settings(params) if parent else params, plan, fit)
    if parent:
        warm.begin(run, parent.weights(fit))
    loop.fit(run, examples, folder, what)
    tensors = {k: v for k, v in run.modules.state_dict().items() if not k.startswith("discriminator.")}
    write_tensors(finished, {k: half(v) for k, v in tensors.items()})
    seal(finished)
    if (kept := sealed(finished)) is None:
        raise IntegrityError(f"{finished}: expected the weights that were just written, found others; run again")
    return kept


def half(x: Tensor) -> Tensor:
    """Round to half precision as on disk: what is calibrated is what was rounded, so nothing is lost later."""
    x = x.detach().cpu()
    return (x.half() if x.is_floating_point() else x).contiguous().clone()


@torch.no_grad()
def allocations(params: config.Params, plan: runtime.Plan, weights: dict[str, Tensor], examples: Examples) -> Tensor:
    """Return router logits of every view, n x R x h x w in half precision: all that the prior needs."""
    backbone = backbones.make(params.model, size=params.image.size).to(plan.device).eval()
    autoencoder = Autoencoder.from_tensors(weights, params.model, backbone).to(plan.device)
    found = []
    for _, batch in examples.batches(FEW, plan.device):
        features = batch.features or backbone(batch.images)
        found.append(autoencoder.router(autoencoder.codes(features)).half().cpu().contiguous())
    return torch.cat(found)


def _hand_over(
    layout: Layout,
    name: str,
    work: Path,
    finished: dict[str, bytes],
    rows: pd.DataFrame,
    examples: Examples,
    logits: dict[str, Tensor],
    origin: dict[str, object],
    backbone: backbones.Backbone,
) -> None:
    """Assemble the outputs next to their place and rename: the stage's last act."""
    with whole_folder(layout.network(name)) as part:
        for fit, data in finished.items():
            (part / f"{fit}.safetensors").write_bytes(data)
        with (part / "history.jsonl").open("w", encoding="utf-8") as history:
            history.writelines((work / fit / "progress.jsonl").read_text("utf-8") for fit in finished)
        _describe(part, rows, origin, backbone)
        grid = next(iter(logits.values())).shape[-2:]
        tensors = {f"logits.{fit}": values for fit, values in logits.items()}
        tensors |= {"rows": examples.rows, "valid": cells_of(examples.valid, grid)}
        save_file(tensors, part / "allocations.safetensors")


def _describe(folder: Path, rows: pd.DataFrame, origin: dict[str, object], backbone: backbones.Backbone) -> None:
    if found := (backbone.facts() or {}).get("ranges"):
        write_text(folder / RANGES, json.dumps(found) + "\n")
    write_text(folder / "origin.json", json.dumps(origin, indent=1) + "\n")
    rows[_KEPT_COLUMNS].to_csv(folder / "rows.csv", index=False, lineterminator="\n")
