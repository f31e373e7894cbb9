"""One prior for several classes, each with its own network: what the groupings are compared by."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from flows.experiments.pieces import Row, Trained, judge
from pvqae import config
from pvqae.evaluation import mechanism, views
from pvqae.files import read_tensors
from pvqae.model import grouping
from pvqae.training import folds, prior


def judge_grouped(params: config.Params, members: list[Trained], work: Path) -> Row:
    """`judge` the first of `members` with the prior of the group that `prior.grouping` puts it in; size and time of
    that prior."""
    found = members[0]
    groups = grouping.GROUPINGS[params.prior.grouping]([member.subject.name for member in members])
    mates = next(names for names in groups.values() if found.subject.name in names)
    chosen = sorted((m for m in members if m.subject.name in mates), key=lambda m: m.subject.name)
    learned = _group_prior(params, chosen, work)
    grouped = replace(found, networks=replace(found.networks, prior=learned))
    size = sum(x.numel() * x.element_size() for x in learned.state_dict().values()) / 1e6
    return judge(grouped) | {"megabytes": size, "milliseconds": _milliseconds(grouped)}


def _group_prior(params: config.Params, members: list[Trained], work: Path) -> grouping.Prior:
    pairs = [mechanism.logits_of(member.networks, member.learnt) for member in members]
    logits, valid = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    key = views.key_of(params.seed, params.prior.model_dump(mode="json"), _digest(logits), views.source_of("training"))
    file = work / "priors" / f"{key}.safetensors"
    if not file.exists():
        learned = prior.fit_group(params, folds.FULL, logits, valid, [])
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in learned.state_dict().items()}, part)
        part.replace(file)
    grid = (logits.shape[-2], logits.shape[-1])
    return grouping.from_tensors(read_tensors(file), grid, params.model.levels, params.prior.width)


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def _milliseconds(found: Trained, repeats: int = 10) -> float:
    """Of the prior's expectation for one view, median."""
    logits, valid = mechanism.logits_of(found.networks, found.unseen.subset(torch.arange(len(found.test)) == 0))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        grouping.expect(found.networks.prior, logits, valid)
        times.append((time.perf_counter() - begun) * 1000)
    return float(np.median(times))
