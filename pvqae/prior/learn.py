"""The verb `pvqae prior G`: learn which allocations normal images get, and how well they can be predicted.

v views; N cells; R levels; h w the coarsest grid.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pvqae.core import config, runtime, seeding
from pvqae.core.errors import DataError
from pvqae.core.files import whole_folder, write_text
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.core.tensors import read_tensors
from pvqae.datasets import splits
from pvqae.prior.prior import (
    BudgetPrior,
    Clustered,
    Expected,
    Prior,
    expect,
    level_frequencies,
)
from pvqae.samples import classes

_ALLOCATIONS = "allocations.safetensors"
_LEAST = 8  # views a cluster must have: fewer teach a prior nothing but themselves
_CELLS = 51200  # expected at once: each is asked in a pass of its view's own


@dataclass(frozen=True, eq=False)
class _Allocations:
    """Router logits of the normals of one prior's classes."""

    rows: pd.DataFrame  # sample_id, category, group_id, split, fold
    row_of_view: Tensor  # v
    valid: Tensor  # v x h x w
    logits: dict[str, Tensor]  # fit → v x R x h x w

    def views(self, keep_rows: "np.typing.NDArray[np.bool_]") -> Tensor:
        return torch.from_numpy(keep_rows)[self.row_of_view]

    def of(self, fit: str, keep_rows: "np.typing.NDArray[np.bool_]") -> tuple[Tensor, Tensor]:
        """Return a fit's logits, and which cells are image, of the views of some rows."""
        kept = self.views(keep_rows)
        return self.logits[fit][kept], self.valid[kept]


def _read(folder: Path, classes: list[str]) -> _Allocations | None:
    """Return allocations of `classes` from one network's folder, or from all networks below `folder`.

    None where no network was trained.
    """
    networks = [folder] if (folder / "rows.csv").exists() else sorted(p.parent for p in folder.glob("*/rows.csv"))
    if networks and not any((path / _ALLOCATIONS).exists() for path in networks):
        return None
    parts = [_read_network(path, classes) for path in networks]
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        raise DataError(f"{folder}: expected allocations of {', '.join(classes)}, found none; run `dvc repro`")
    offsets = np.cumsum([0, *(len(part.rows) for part in parts)])
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    return _Allocations(
        rows,
        torch.cat([part.row_of_view + int(offset) for part, offset in zip(parts, offsets[:-1], strict=True)]),
        torch.cat([part.valid for part in parts]),
        # A network without folds is the same in every fold.
        {
            fit: torch.cat([part.logits.get(fit, part.logits[splits.FULL]) for part in parts])
            for fit in splits.fits(rows)
        },
    )


def _read_network(folder: Path, classes: list[str]) -> _Allocations:
    rows = pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False).astype({"fold": int})
    tensors = read_tensors(folder / _ALLOCATIONS)
    wanted = torch.tensor(rows["category"].isin(classes).tolist())  # pandas gives a read-only array, torch warns
    keep = wanted[tensors["rows"]]
    position = torch.cumsum(wanted, 0) - 1
    logits = {k.removeprefix("logits."): v[keep].float() for k, v in tensors.items() if k.startswith("logits.")}
    kept_rows = rows[wanted.numpy()].reset_index(drop=True)
    return _Allocations(kept_rows, position[tensors["rows"][keep]], tensors["valid"][keep], logits)


def _loss(expected: Expected, logits_BNR: Tensor, counted_BN: Tensor) -> Tensor:
    """Return the cross-entropy of the chosen levels, and Gaussian likelihood of the logits, over the counted cells."""
    entropy = F.cross_entropy(expected.logits.transpose(1, 2), logits_BNR.argmax(-1), reduction="none")
    gaussian = F.gaussian_nll_loss(expected.mean, logits_BNR, expected.log_variance.exp(), reduction="none").mean(-1)
    return (entropy + gaussian)[counted_BN].mean()


def _random_masks(batch: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return B x N booleans: 15-60 % of the cells hidden, half of them as 3x3 blocks (a defect is no lone cell)."""
    height, width = grid
    ratio = 0.15 + 0.45 * torch.rand(batch, 1, generator=generator)
    single = torch.rand(batch, height * width, generator=generator) < ratio / 2
    seeds = (torch.rand(batch, 1, height, width, generator=generator) < (ratio / 2 / 9)[..., None, None]).float()
    blocks = F.max_pool2d(seeds, 3, 1, 1).flatten(1) > 0
    return single | blocks


def fit(
    params: config.Params,
    fit_name: str,
    logits: Tensor,
    valid: Tensor,
    history: list[dict[str, object]],
    phase: str = "prior",
) -> BudgetPrior:
    """Learn masked prediction on the given views; seconds on a processor, so it is not resumed in the middle."""
    settings, (_, levels, *grid) = params.prior, logits.shape
    seeding.initialise(params.seed, phase, fit_name)
    prior = BudgetPrior((grid[0], grid[1]), levels, settings.width)
    prior.start(logits.flatten(2).transpose(1, 2), valid.flatten(1))
    optimiser = torch.optim.AdamW(prior.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.lr, settings.steps)
    tokens, padding = logits.flatten(2).transpose(1, 2), ~valid.flatten(1)
    for step in track(range(settings.steps), f"{phase} {fit_name}", total=settings.steps):
        draws = seeding.generator(params.seed, phase, fit_name, step)
        chosen = torch.randint(len(tokens), (settings.batch,), generator=draws)
        masked = _random_masks(settings.batch, prior.grid, draws)
        expected = prior(tokens[chosen], masked, padding[chosen])
        value = _loss(expected, tokens[chosen], masked & ~padding[chosen])
        optimiser.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        history.append({"phase": phase, "fold": fit_name, "step": step, "loss": float(f"{value.item():.6g}")})
    prior.eval().requires_grad_(False)
    for x in prior.parameters():
        x.copy_(x.half())  # as a bundle keeps it: what is calibrated is what is shipped
    return prior


def _most_clusters(settings: config.Prior) -> int:
    """Return how many priors a group may have."""
    return settings.clusters if settings.grouping == "clustered" else 1


def _centres(described_BF: Tensor, most: int, seed: int) -> Tensor:
    """Return k-means centres k x F, k <= `most` and so few that each has `_LEAST` views. The same on every run."""
    different = len(np.unique(described_BF.numpy(), axis=0))
    for k in range(min(most, len(described_BF) // _LEAST, different), 1, -1):
        labels = _labels(described_BF, k, seed)
        if torch.bincount(labels, minlength=k).min() >= _LEAST:
            # Not k-means' own centres: its threads add up in any order.
            return torch.stack([described_BF[labels == c].mean(0) for c in range(k)])
    return described_BF.mean(0, keepdim=True)


def _labels(described_BF: Tensor, k: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans  # a second that the other groupings save

    found = KMeans(k, n_init=10, random_state=seed % 2**32).fit_predict(described_BF.double().numpy())
    return torch.from_numpy(found).long()


def fit_group(
    params: config.Params, fit_name: str, logits: Tensor, valid: Tensor, history: list[dict[str, object]]
) -> Prior:
    """Return one prior of the given views, or one per cluster of them; a fold's clusters are its own, too."""
    most = _most_clusters(params.prior)
    if most == 1:
        return fit(params, fit_name, logits, valid, history)
    seed = seeding.derive(params.seed, "clusters", fit_name)
    middles = _centres(Clustered.describe(logits, valid), most, seed).half().float()  # as a bundle keeps them
    chosen = Clustered(middles, []).assign(logits, valid)
    parts = [
        fit(params, fit_name, logits[chosen == c], valid[chosen == c], history, f"prior-{c}")
        for c in range(len(middles))
    ]
    return Clustered(middles, parts)


def cross_entropies(prior: Prior, seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return nats per cell that the prior, and the per-position frequency table of the `seen` views, need for the
    `unseen` ones' levels. Each pair is logits v x R x h x w and valid v x h x w.
    """
    logits, valid = unseen
    truth, counted = logits.argmax(1).flatten(1), valid.flatten(1)
    most = max(1, _CELLS // counted.shape[1])
    runs = zip(torch.split(logits, most), torch.split(valid, most), strict=True)
    expected = torch.cat([expect(prior, *run).logits for run in runs]).log_softmax(-1)
    table = level_frequencies(seen[0].flatten(2).transpose(1, 2), seen[1].flatten(1))
    own = -expected.gather(-1, truth[..., None])[..., 0][counted].mean()
    frequency = -table.expand_as(expected).gather(-1, truth[..., None])[..., 0][counted].mean()
    return float(own), float(frequency)


def train(layout: Layout, params: config.Params, group: str) -> None:
    """Fit the prior of `group` and its folds; writes `models/<dataset>/priors/<group>/` whole or not at all."""
    item = classes.read(layout.classes_file, layout.name).prior(group)
    runtime.Plan("cpu", "float32", 1, 1).apply()  # operations this small only lose by a second thread
    if (found := _read(layout.root / item.allocations, list(item.classes))) is None:
        print(f"prior {group}: no network was trained (train.steps: 0), so there is nothing to learn", flush=True)
        with whole_folder(layout.prior(group)) as part:
            write_text(part / "history.jsonl", splits.NO_HISTORY)
            _facts({name: [] for name in item.classes}, part / "facts.json")
        return
    history: list[dict[str, object]] = []
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in item.classes}
    with whole_folder(layout.prior(group)) as part:
        for name in _fits_of(found.rows, params.score):
            prior = fit_group(params, name, *found.of(name, splits.learns(found.rows, name)), history)
            save_file(prior.state_dict(), part / f"{name}.safetensors")
            for category, values in scores.items():
                values += _judged(prior, found, name, category)
        _facts(scores, part / "facts.json")
        (part / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history), "utf-8")


def _fits_of(rows: pd.DataFrame, score: config.Score) -> list[str]:
    """Return the fits that need a prior. Where no score reads it, one fold is enough, to say how well it predicts."""
    return splits.fits(rows) if score.reads_network else splits.fits(rows)[:2]


def _judged(prior: Prior, found: _Allocations, fit_name: str, category: str) -> list[tuple[float, float]]:
    """Return the cross-entropies of the class's normals that this fit may judge; the table is the class's own."""
    mine = (found.rows["category"] == category).to_numpy()
    seen = found.of(fit_name, mine & splits.learns(found.rows, fit_name))
    unseen = found.of(fit_name, mine & splits.judges(found.rows, fit_name))
    return [cross_entropies(prior, seen, unseen)] if len(unseen[0]) else []


def _facts(scores: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Write one pair per class: means over its fits, null where no normal was unseen, or nothing was learnt."""
    facts: dict[str, dict[str, float | None]] = {}
    for category, pairs in scores.items():
        own, frequency = np.mean(pairs, axis=0).tolist() if pairs else (math.nan, math.nan)
        if pairs:
            print(
                f"{category}: cross-entropy of unseen normals: prior {own:.4f}, frequencies {frequency:.4f}", flush=True
            )
        both = {"prior_cross_entropy": own, "frequency_cross_entropy": frequency}
        facts[category] = {k: None if math.isnan(v) else round(v, 6) for k, v in both.items()}
    path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
