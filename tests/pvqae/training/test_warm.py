"""What a fit may go on from, and how it does."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from pvqae.core import config, runtime
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import digest
from pvqae.datasets import splits
from pvqae.features.examples import Examples
from pvqae.training import loop, warm
from pvqae.training.network import half
from pvqae.training.run import Run, start

Params = Callable[..., config.Params]
Make = Callable[[str], Examples]


def normals(fold_of: dict[str, int], split: str = "train") -> pd.DataFrame:
    """A row per group of one class."""
    rows = [{"category": "c", "group_id": group, "split": split, "fold": fold} for group, fold in fold_of.items()]
    return pd.DataFrame(rows)


@pytest.fixture
def trained(params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path) -> Run:
    run = start(params("vqgan"), plan, "full")
    loop.fit(run, examples("vqgan"), tmp_path / "work", "scratch")
    return run


@pytest.fixture
def folder(params: Params, trained: Run, tmp_path: Path) -> Path:
    """A parent: what stages write, as far as a warm start reads it."""
    some, network, bundle = params("vqgan"), tmp_path / "network", tmp_path / "bundle"
    network.mkdir()
    bundle.mkdir()
    weights = {k: half(v) for k, v in trained.modules.state_dict().items()}
    save_file(weights, network / "fold-0.safetensors")
    save_file(weights, bundle / "weights.safetensors")
    facts = {"model": some.model.model_dump(mode="json"), "image": some.image.model_dump(mode="json")}
    (bundle / "config.json").write_text(json.dumps(facts))
    (bundle / "SHA256SUMS").write_text(
        "".join(f"{digest(bundle / n)}  {n}\n" for n in ("config.json", "weights.safetensors"))
    )
    normals({"a": 0, "b": 1}).to_csv(network / "rows.csv", index=False)
    warm.keep(network, tmp_path / "kept")
    warm.place(bundle, tmp_path / "kept", tmp_path / "parent")
    return tmp_path / "parent"


def test_no_folder_is_no_parent(params: Params, tmp_path: Path) -> None:
    (tmp_path / "none").write_text("from scratch")
    assert warm.Parent.load(tmp_path / "none", params()) is None
    assert warm.obstacle(None, normals({"a": 0}), "full") == "no parent"


def test_a_parent_is_what_it_was_when_it_was_kept(params: Params, folder: Path) -> None:
    found = warm.Parent.load(folder, params("vqgan"))
    assert found is not None
    assert found.bundle_sha256 == digest(folder / "bundle" / "SHA256SUMS")
    assert list(found.rows["group_id"]) == ["a", "b"]
    assert (found.has("full"), found.has("fold-0"), found.has("fold-1")) == (True, True, False)


@pytest.mark.parametrize("name", ["bundle/weights.safetensors", "bundle/config.json", "network/fold-0.safetensors"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_changed_or_missing_file_is_refused(params: Params, folder: Path, name: str, gone: bool) -> None:
    if gone:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="scratch"):
        warm.Parent.load(folder, params("vqgan"))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "width", 16),
        ("model", "levels", 3),
        ("model", "codes", 8),
        ("image", "size", 96),
    ],
)
def test_a_parent_of_another_model_is_refused_by_name(
    params: Params, folder: Path, section: str, key: str, value: object
) -> None:
    own = params("vqgan")
    other = own.model_copy(update={section: getattr(own, section).model_copy(update={key: value})})
    with pytest.raises(ConfigError, match=f"{section}.{key} .* there, {value} in params"):
        warm.Parent.load(folder, other)


def test_a_parent_of_another_backbone_is_left_alone(params: Params, folder: Path) -> None:
    """What its network has learned is of features that are gone: the fit starts from scratch, and says why."""
    own = params("vqgan")
    other = own.model_copy(update={"model": own.model.model_copy(update={"backbone": "timm:resnet18@00", "levels": 3})})
    parent = warm.Parent.load(folder, other)
    said = "the parent has another backbone: model.backbone vqgan, here timm:resnet18@00"
    assert warm.obstacle(parent, normals({"a": 0, "b": 1}), "full") == said


BOTH = {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("fit", ["full", "fold-0", "fold-1"])
def test_more_parts_never_stand_in_the_way(fit: str) -> None:
    parent = Stub(normals(BOTH))
    assert warm.obstacle(parent, normals({**BOTH, "d": 0, "e": 1}), fit) == ""


class Stub(warm.Parent):
    def __init__(self, rows: pd.DataFrame) -> None:
        super().__init__(Path(), "", rows)

    def has(self, fit: str) -> bool:
        return True


def test_a_part_that_changed_its_fold_or_is_gone_does() -> None:
    parent = Stub(normals(BOTH))
    assert "c/a" in warm.obstacle(parent, normals({"b": 1, "c": 2}), "full")  # now a defect, or another split
    moved = normals({"a": 1, "b": 1, "c": 2})  # as with another number of folds
    assert "c/a" in warm.obstacle(parent, moved, "fold-1")
    assert warm.obstacle(parent, moved, "fold-2") == ""


def test_what_cross_fitting_taught_the_shipped_fit_may_not_be_judged_by_it() -> None:
    """At 200 normals the threshold comes from the split calibrate, which a cross-fitted parent has learned from."""
    before = pd.concat([normals({"a": 0}), normals({"b": 1}, "calibrate")])
    after = pd.concat([normals({"a": splits._HELD_OUT}), normals({"b": splits._HELD_OUT}, "calibrate")])
    assert "c/b" in warm.obstacle(Stub(before), after, "full")
    assert warm.obstacle(Stub(after), after, "full") == ""


@pytest.mark.parametrize("seed", range(20))
def test_no_fit_of_a_chain_ever_judges_what_an_ancestor_learned(seed: int) -> None:
    """Parts come, go, and change their folds; `seen` is kept by hand over all ancestors."""
    draw = torch.Generator().manual_seed(seed)
    seen: dict[str, set[tuple[str, str]]] = {}
    parent: Stub | None = None
    for _ in range(6):
        there = [g for g in "abcdefghij" if torch.rand((), generator=draw) < 0.9]
        shift = int(torch.rand((), generator=draw) < 0.15)
        rows = normals({g: (ord(g) + shift) % 3 for g in there})
        for fit in splits.fits(rows):
            own = warm._groups(rows[splits.learns(rows, fit)])
            seen[fit] = own | (set() if warm.obstacle(parent, rows, fit) else seen.get(fit, set()))
            assert not seen[fit] & warm._groups(rows[splits.judges(rows, fit)])
        parent = Stub(rows)


def test_the_settings_of_a_warm_start() -> None:
    before = config.Params(train=config.Train(steps=60, temperature=(1.0, 0.4)))
    train = warm.settings(before).train
    assert (train.steps, train.warmup, train.schedule, train.temperature) == (20, 0.0, "constant", (0.4, 0.4))
    assert loop._warmup_steps(train) == 0
    assert train.lr < before.train.lr
    assert warm._steps(config.Train(steps=2)) == 1
    assert warm._steps(config.Train(steps=60, warm_steps=7)) == 7
    assert warm.settings(config.Params(train=config.Train(schedule="adaptive"))).train.schedule == "adaptive"


def test_a_run_begins_with_its_parents_weights_codebook_and_scales(
    params: Params, plan: runtime.Plan, folder: Path, trained: Run
) -> None:
    parent = warm.Parent.load(folder, params("vqgan"))
    assert parent is not None
    run = start(warm.settings(params("vqgan")), plan, "full")
    warm.begin(run, parent.weights("full"))
    ours, theirs = run.modules.state_dict(), trained.modules.state_dict()
    for name, value in ours.items():
        if not name.endswith("codebook.sums"):
            assert torch.equal(value, theirs[name].half().to(value.dtype)), name
    codebook = run.autoencoder.codebook
    assert bool(codebook.started)
    assert torch.allclose(codebook.sums / codebook.counts[:, None], codebook.codes, atol=1e-6)


def test_a_warm_fit_quantises_from_its_first_step_at_the_full_price(
    params: Params, plan: runtime.Plan, folder: Path, examples: Make, tmp_path: Path
) -> None:
    parent = warm.Parent.load(folder, params("vqgan"))
    assert parent is not None
    run = start(warm.settings(params("vqgan")), plan, "full")
    warm.begin(run, parent.weights("full"))
    loop.fit(run, examples("vqgan"), tmp_path / "warm", "warm")
    rows = [json.loads(line) for line in (tmp_path / "warm" / "progress.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["codebook_usage"] > 0 for row in rows)
    assert all(row["budget_weight"] > 0 for row in rows)


def test_sums_that_overflowed_in_half_precision_are_made_anew(params: Params, plan: runtime.Plan, folder: Path) -> None:
    parent = warm.Parent.load(folder, params("vqgan"))
    assert parent is not None
    weights = parent.weights("full")
    weights["autoencoder.codebook.sums"][:] = torch.inf
    weights["autoencoder.codebook.counts"][0] = torch.inf
    run = start(params("vqgan"), plan, "full")
    warm.begin(run, weights)
    assert run.autoencoder.codebook.sums.isfinite().all()


def test_weights_of_other_code_are_a_clear_error(params: Params, plan: runtime.Plan, folder: Path) -> None:
    parent = warm.Parent.load(folder, params("vqgan"))
    assert parent is not None
    weights = parent.weights("full")
    del weights["autoencoder.codebook.codes"]
    with pytest.raises(ConfigError, match=r"codebook\.codes"):
        warm.begin(start(params("vqgan"), plan, "full"), weights)
