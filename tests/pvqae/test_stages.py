"""From a folder of images to a report, stage by stage, as dvc.yaml runs them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.experiments import limits
from pvqae.calibration import fitting
from pvqae.calibration.calibrate import calibrate
from pvqae.core.errors import ConfigError
from pvqae.core.files import digest
from pvqae.core.layout import Layout
from pvqae.core.tensors import read_tensors
from pvqae.datasets import splits
from pvqae.evaluation import stage
from pvqae.inference import bundle
from pvqae.model import backbones
from pvqae.prior import learn, prior
from pvqae.samples import manifest
from pvqae.training import network

IMAGE_KEYS = {"image_auroc", "f1_max", "threshold", "false_alarm_rate", "miss_rate", "fusion", "kinds"}
PIXEL_KEYS = {"pixel_auroc", "aupro", "aupro_005", "pixel_f1_max", "seg_f1", "pixel_threshold"}
PART_KEYS = {f"{part}_{kind}_auroc" for part in ("s_prior", "s_recon", "product") for kind in ("image", "pixel")}
HEALTH_KEYS = {"prior_cross_entropy", "frequency_cross_entropy", "level_shares", "codebook_usage"}
COUNT_KEYS = {"n_normal", "n_defect", "latency_ms", "train_seconds"}


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def check_metrics(layout: Layout, classes: set[str]) -> dict[str, Any]:
    """The schema of reports/<dataset>/metrics.json."""
    found: dict[str, Any] = read(layout.reports / "metrics.json")
    assert found["dataset"] == "tiny"
    assert found["protocol"] == "grouped"
    assert found["classes"].keys() == classes
    for one in found["classes"].values():
        missing = (IMAGE_KEYS | PIXEL_KEYS | PART_KEYS | HEALTH_KEYS | COUNT_KEYS) - one.keys()
        assert not missing
        assert (one["n_normal"], one["n_defect"]) == (3, 3)
        assert 0 <= one["image_auroc"] <= 1
        assert sum(one["level_shares"]) == pytest.approx(1, abs=1e-4)
        assert one["kinds"]["dent"].keys() >= {"image_auroc", "miss_rate", "n"}
        assert one["train_seconds"] >= 0
    assert found["mean"].keys() >= {"image_auroc", "pixel_auroc", "aupro", "false_alarm_rate"}
    return found


def test_every_stage_leaves_its_files(workspace: Layout) -> None:
    for name in ("cloth", "plate"):
        folder = workspace.network(name)
        fits = {"full", "fold-0", "fold-1"}
        files = {
            "history.jsonl",
            "rows.csv",
            "origin.json",
            "allocations.safetensors",
            *(f"{fit}.safetensors" for fit in fits),
        }
        assert {p.name for p in folder.iterdir()} == files
        assert read(workspace.timing(name)).keys() == {"train_seconds", "reading"}
        assert {p.name for p in workspace.prior(name).iterdir()} == {
            *("facts.json", "history.jsonl"),
            *(f"{fit}.safetensors" for fit in fits),
        }
        assert {p.name for p in workspace.bundle(name).iterdir()} == {
            *("weights.safetensors", "statistics.safetensors", "config.json", "calibration.json", "profile.json"),
            "SHA256SUMS",
        }
        assert {p.name for p in workspace.class_report(name).iterdir()} >= {"metrics.json", "images.csv", "curves.json"}
    assert {p.name for p in workspace.reports.iterdir()} >= {"metrics.json", "images.csv", "index.html", "roc.csv"}
    assert not list(workspace.root.rglob("*.part"))


def test_history_has_every_step_of_every_fit_and_no_clock(workspace: Layout) -> None:
    rows = [json.loads(line) for line in (workspace.network("cloth") / "history.jsonl").read_text().splitlines()]
    steps = {fit: [row["step"] for row in rows if row["fold"] == fit] for fit in ("full", "fold-0", "fold-1")}
    assert steps == {fit: [0, 1, 2, 3] for fit in steps}
    assert {row["phase"] for row in rows} == {"quantised"}  # a tenth of four steps is none
    assert all(
        {"loss", "reconstruction", "share_0", "share_1", "share_2", "codebook_usage"} <= row.keys() for row in rows
    )
    assert not any("time" in key or "second" in key for row in rows for key in row)


def test_allocations_of_all_normals_are_handed_over(workspace: Layout) -> None:
    tensors = load_file(workspace.network("plate") / "allocations.safetensors")
    rows = pd.read_csv(workspace.network("plate") / "rows.csv")
    assert tensors.keys() == {"rows", "valid", "logits.full", "logits.fold-0", "logits.fold-1"}
    assert tensors["rows"].tolist() == list(range(len(rows)))
    assert tensors["logits.full"].shape == (len(rows), 3, 2, 2)
    assert list(rows["sample_id"]) == list(manifest.read(workspace.network_rows("plate"))["sample_id"])


def test_the_report_has_the_figures_of_the_architecture(workspace: Layout) -> None:
    found = check_metrics(workspace, {"cloth", "plate"})
    assert found["mean"]["image_auroc"] == pytest.approx(
        np.mean([one["image_auroc"] for one in found["classes"].values()])
    )
    assert found["mean"]["image_auroc"] > 0.8  # dents are black
    images = pd.read_csv(workspace.reports / "images.csv")
    assert len(images) == 12
    assert set(images["class"]) == {"cloth", "plate"}


def test_the_card_says_how_the_threshold_was_found(workspace: Layout) -> None:
    card = read(workspace.bundle("cloth") / "calibration.json")
    rows = manifest.read(workspace.class_rows("cloth", "normals"))
    assert card["method"] == "cross_fit"
    assert card["n"] == card["n_groups"] == len(card["scores"]) == len(rows)
    assert card["manifest_sha256"] == digest(workspace.class_rows("cloth", "normals"))
    assert card["target_rate"] == 0.2
    assert card["scores"][0] <= card["threshold"] <= card["scores"][-1]
    low, high = card["map_scale"]
    assert low < card["map_threshold"] < high
    pixel = card["pixel"]
    assert pixel.keys() >= {"threshold", "rule", "target_area", "area", "interval_95", "n_marked", "pixels"}
    assert (pixel["n"], pixel["n_groups"]) == (card["n"], card["n_groups"])
    assert 0 <= pixel["area"] <= pixel["target_area"] == 0.001
    assert low < pixel["threshold"]


def test_the_threshold_comes_from_fits_that_had_not_seen_the_image(workspace: Layout) -> None:
    """The shipped bundle knows its normals: judged by itself they would look better than unseen ones."""
    detector = bundle.load(workspace.bundle("cloth"))
    rows = manifest.read(workspace.class_rows("cloth", "normals"))
    pairs = zip(rows["sample_id"], rows["path"], strict=True)
    known = [scored.image_score for scored in detector.score_many(pairs, workspace.data)]
    assert np.median(known) < np.median(detector.card["scores"])


def test_no_step_of_a_fit_sees_the_rows_that_it_judges(
    copied: Layout, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = splits.assign_folds(manifest.read(copied.network_rows("cloth")), tiny.params().calibration)
    unseen = {fit: set(np.flatnonzero(splits.judges(rows, fit))) for fit in ("full", "fold-0", "fold-1")}
    told: dict[str, list[set[int]]] = {fit: [] for fit in unseen}
    fit_loop, fit_prior, fit_scorer = network.loop.fit, learn.fit, fitting.fit

    def loop(run: Any, examples: Any, *rest: Any) -> None:
        told[run.name].append(set(examples.rows.tolist()))
        fit_loop(run, examples, *rest)

    def expectation(params: Any, name: str, logits: Any, *rest: Any) -> Any:
        shared = load_file(copied.network("cloth") / "allocations.safetensors")[f"logits.{name}"].float()
        told[name].append({i for i, x in enumerate(shared) if (logits == x).flatten(1).all(1).any()})
        return fit_prior(params, name, logits, *rest)

    def scorer(found: Any, examples: Any, groups: Any, params: Any, name: str, retaken: Any) -> Any:
        told[name].append(set(examples.rows.tolist()))
        assert set(retaken.rows.tolist()) <= told[name][-1]
        return fit_scorer(found, examples, groups, params, name, retaken)

    monkeypatch.setattr(network.loop, "fit", loop)
    monkeypatch.setattr(learn, "fit", expectation)
    monkeypatch.setattr(fitting, "fit", scorer)
    shutil.rmtree(copied.root / ".pvqae")
    tiny.run(network.train, copied, tiny.params(), "cloth")
    tiny.run(learn.train, copied, tiny.params(), "cloth")
    tiny.run(calibrate, copied, tiny.params(), "cloth")
    for name, sets in told.items():
        assert len(sets) == 3
        assert all(learned == set(range(len(rows))) - unseen[name] for learned in sets)
    assert set.union(*unseen.values()) == set(range(len(rows)))


def test_what_is_calibrated_is_what_is_shipped(workspace: Layout) -> None:
    """Rounded once, when the training ends."""
    trained = load_file(workspace.network("cloth") / "full.safetensors")
    shipped = load_file(workspace.bundle("cloth") / "weights.safetensors")
    assert all(name in shipped and torch.equal(value, shipped[name]) for name, value in trained.items())
    folded = load_file(workspace.network("cloth") / "fold-0.safetensors")
    assert {value.dtype for value in folded.values() if value.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize("name", ["cloth", "plate"])
def test_the_card_says_what_the_detector_finds_of_its_own_defects(workspace: Layout, name: str) -> None:
    card = read(workspace.bundle(name) / "calibration.json")
    tried = card["synthetic"]
    assert 0 <= tried["found"] <= tried["n"]
    assert tried["n"] > 12  # several on each of the 12 normals
    assert (tried["highest"] > card["threshold"]) == (tried["found"] > 0)
    assert any("would find nothing" in text for text in card["warnings"]) == (tried["found"] == 0)


def test_health_is_part_of_the_bundle(workspace: Layout) -> None:
    health = read(workspace.bundle("plate") / "config.json")["health"]
    facts = read(workspace.prior("plate") / "facts.json")["plate"]
    assert health.keys() == {
        "level_shares",
        "codebook_usage",
        "prior_cross_entropy",
        "frequency_cross_entropy",
        "warnings",
    }
    assert {key: health[key] for key in facts} == facts
    assert all(value > 0 for value in facts.values())


@pytest.fixture
def copied(workspace: Layout, tmp_path: Path) -> Layout:
    shutil.copytree(workspace.root, tmp_path / "copy")
    return Layout(tmp_path / "copy", "tiny")


def test_finished_fits_are_kept_when_only_the_outputs_are_gone(
    copied: Layout, tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied.network("cloth"))
    shutil.rmtree(copied.models)
    monkeypatch.setattr(network.loop, "fit", lambda *a: pytest.fail("trained again"))
    tiny.run(network.train, copied, tiny.params(), "cloth")
    assert contents(copied.network("cloth")) == before
    assert capsys.readouterr().out.count("finished before, kept") == 3


@pytest.mark.parametrize("section", [{"seed": 1}, {"train": {"steps": 5, "batch": 4}}])
def test_work_of_other_params_is_not_resumed(
    copied: Layout, tiny: Any, section: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied.network("cloth"))
    tiny.run(network.train, copied, tiny.params(**section), "cloth")
    assert "kept" not in capsys.readouterr().out
    assert contents(copied.network("cloth"))["full.safetensors"] != before["full.safetensors"]


def test_work_is_named_by_rows_params_and_code(copied: Layout, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file, params = copied.network_rows("cloth"), tiny.params()
    key = network.work_key(file, params)
    assert key == network.work_key(file, tiny.params())
    assert key == network.work_key(file, tiny.params(evaluation={"pictures": 3}, score={"recon": "both", "blur": 1}))
    assert key != network.work_key(file, tiny.params(model={"codes": 16}))
    assert key != network.work_key(copied.network_rows("plate"), params)
    monkeypatch.setattr(network, "_source_hash", lambda: "other code")
    assert key != network.work_key(file, params)


def test_a_training_that_fails_leaves_the_old_outputs(
    copied: Layout, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copied.models)
    monkeypatch.setattr(network, "save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tiny.run(network.train, copied, tiny.params(seed=3), "cloth")
    monkeypatch.setattr(learn, "save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tiny.run(learn.train, copied, tiny.params(), "cloth")
    kept = {name: sha256 for name, sha256 in contents(copied.models).items() if ".part/" not in name}
    assert kept == before


def test_the_same_inputs_give_the_same_bytes(workspace: Layout, tmp_path: Path, tiny: Any) -> None:
    graph = tiny.per_class("cloth")
    again = tiny.variant(workspace, tmp_path, graph, tiny.params())
    assert contents(again.network("cloth")) == contents(workspace.network("cloth"))
    assert contents(again.prior("cloth")) == contents(workspace.prior("cloth"))
    assert bundle.sha256_of(again.bundle("cloth")) == bundle.sha256_of(workspace.bundle("cloth"))


def test_one_network_and_a_universal_prior_serve_all_classes(workspace: Layout, tmp_path: Path, tiny: Any) -> None:
    graph = {
        "dataset": "tiny",
        "networks": {"all": {"classes": ["cloth", "plate"]}},
        "priors": {"all": {"classes": ["cloth", "plate"], "allocations": "models/tiny/networks"}},
        "classes": {name: {"network": "all", "prior": "all"} for name in ("cloth", "plate")},
    }
    params = tiny.params(model={"width": 16, "code_dim": 8, "codes": 32, "network": "shared"})
    layout = tiny.variant(workspace, tmp_path, graph, params)
    check_metrics(layout, {"cloth", "plate"})
    cloth, plate = (load_file(layout.bundle(name) / "weights.safetensors") for name in ("cloth", "plate"))
    assert all((value == plate[name]).all() for name, value in cloth.items())
    sums = [bundle.sha256_of(layout.bundle(name)) for name in ("cloth", "plate")]
    assert sums[0] != sums[1]  # memory, statistics and threshold are each class's own
    assert [p.name for p in (layout.models / "priors").iterdir()] == ["all"]


def test_one_network_and_clustered_priors_need_no_label(workspace: Layout, tmp_path: Path, tiny: Any) -> None:
    graph = {
        "dataset": "tiny",
        "networks": {"all": {"classes": ["cloth", "plate"]}},
        "priors": {"all": {"classes": ["cloth", "plate"], "allocations": "models/tiny/networks/all"}},
        "classes": {name: {"network": "all", "prior": "all"} for name in ("cloth", "plate")},
    }
    model = {"width": 16, "code_dim": 8, "codes": 32, "network": "shared"}
    params = tiny.params(model=model, prior={"grouping": "clustered", "clusters": 2, "steps": 5, "width": 16})
    layout = tiny.variant(workspace, tmp_path, graph, params)
    check_metrics(layout, {"cloth", "plate"})
    for name in ("cloth", "plate"):
        shipped = bundle.load(layout.bundle(name)).scorer.networks.trained.prior
        assert isinstance(shipped, prior.Clustered)
        trained = prior.from_tensors(read_tensors(layout.prior("all") / "full.safetensors"), (2, 2), 3, 16)
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in shipped.state_dict().items())
    facts = read(layout.prior("all") / "facts.json")
    assert facts["cloth"] != facts["plate"]
    health = read(layout.bundle("plate") / "config.json")["health"]
    assert {key: health[key] for key in facts["plate"]} == facts["plate"]


def test_a_folds_clusters_learn_without_the_folds_parts(
    workspace: Layout, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other allocations of fold 0's own parts change every fit that learns from them, but not fold 0's."""
    monkeypatch.setattr(learn, "_LEAST", 1)
    layout = Layout(tmp_path / "copy", "tiny")
    shutil.copytree(workspace.root, layout.root)
    params = tiny.params(prior={"grouping": "clustered", "clusters": 2, "steps": 2, "width": 16})
    before, file = [], layout.network("cloth") / "allocations.safetensors"
    fold = pd.read_csv(file.with_name("rows.csv"))["fold"].to_numpy()
    for _ in range(2):
        tiny.run(learn.train, layout, params, "cloth")
        before.append({p.name: digest(p) for p in layout.prior("cloth").glob("f*.safetensors")})
        tensors = load_file(file)
        own = torch.from_numpy(fold == 0)[tensors["rows"]]
        for name in tensors:
            if name.startswith("logits."):
                tensors[name][own] = 5 - tensors[name][own]
        save_file(tensors, file)
    assert before[0]["fold-0.safetensors"] == before[1]["fold-0.safetensors"]
    assert before[0]["full.safetensors"] != before[1]["full.safetensors"]
    assert len(load_file(layout.prior("cloth") / "fold-0.safetensors")["centres"]) == 2


@pytest.mark.parametrize(
    ("run", "what"), [(network.train, "network"), (learn.train, "prior"), (calibrate, "class"), (stage.run, "class")]
)
def test_a_stage_of_an_unknown_name_says_which_names_exist(workspace: Layout, tiny: Any, run: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=f"no {what} 'clooth'; expected one of: cloth, plate"):
        tiny.run(run, workspace, tiny.params(), "clooth")


def test_a_class_with_enough_normals_is_judged_on_its_calibrate_split(
    workspace: Layout, tmp_path: Path, tiny: Any
) -> None:
    params = tiny.params(calibration={"kfold_below": 5, "false_alarm_rate": 0.4})
    layout = tiny.variant(workspace, tmp_path, tiny.per_class("cloth"), params)
    rows = manifest.read(layout.class_rows("cloth", "normals"))
    card = read(layout.bundle("cloth") / "calibration.json")
    assert card["method"] == "held_out"
    assert card["n"] == (rows["split"] == "calibrate").sum()
    assert {p.name for p in layout.network("cloth").glob("f*.safetensors")} == {"full.safetensors"}


@pytest.mark.parametrize("fusion", ["gated", "product"])
def test_the_papers_pixel_backbone_is_a_params_change_away(
    workspace: Layout, tmp_path: Path, tiny: Any, fusion: str
) -> None:
    params = tiny.params(
        model={"backbone": "vqgan", "width": 8, "code_dim": 4, "codes": 16, "levels": 2},
        train={"steps": 4, "batch": 4, "adversarial": True},
        score={"recon": "decoder", "prior": "cross_entropy", "fusion": fusion},
    )
    layout = tiny.variant(workspace, tmp_path, tiny.per_class("plate"), params)
    found = check_metrics(layout, {"plate"})
    assert found["classes"]["plate"]["fusion"] == fusion
    tensors = load_file(layout.bundle("plate") / "weights.safetensors")
    assert any(name.startswith("backbone.") for name in tensors)
    assert not any("discriminator" in name for name in tensors)
    assert read(layout.bundle("plate") / "config.json")["backbone_sha256"] is None
    assert backbones.make(params.model).weights_sha256 is None


def test_the_proof_draws_halves_of_the_unseen_normals(workspace: Layout, tiny: Any) -> None:
    found = tiny.run(limits.calibration, workspace, tiny.params(), "cloth")
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    assert found["target"] == 0.2


def test_where_no_threshold_reads_a_network_none_is_trained_per_fold(
    copied: Layout, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny.params(score={"recon": "memory", "fusion": "recon"})
    tiny.run(network.train, copied, params, "cloth")
    assert {p.stem for p in copied.network("cloth").glob("*.safetensors")} == {"full", "allocations"}
    tiny.run(learn.train, copied, params, "cloth")
    tiny.run(calibrate, copied, params, "cloth")
    card = read(copied.bundle("cloth") / "calibration.json")
    assert card["method"] == "cross_fit"
    assert card["n"] == len(manifest.read(copied.class_rows("cloth", "normals")))
