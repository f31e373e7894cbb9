"""The accuracy bench: kept results, means, paired differences, files, and the command."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import main
from flows.experiments import accuracy, benchmark, subjects
from flows.experiments.accuracy import MEAN
from flows.experiments.benchmark import COSTS, FIGURES, METHODS, OURS
from flows.experiments.rivals import RIVALS
from flows.experiments.subjects import Subject
from flows.experiments.trial import BenchmarkContext
from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError, PvqaeError
from pvqae.core.layout import Layout
from pvqae.datasets import build
from pvqae.evaluation.metrics import PixelMetrics
from pvqae.samples import images, manifest

SOME = (OURS, "patchcore_1", "control", "covering")
PARAMS = config.parse(
    {
        "data": {"name": "tiny", "source": "mvtec"},
        "image": {"size": 64},
        "model": {"width": 16, "code_dim": 8, "codes": 32},
        "memory": {"codes": 64},
        "train": {"steps": 3, "batch": 4},
        "prior": {"steps": 3, "width": 16},
        "compute": {"device": "cpu", "precision": "float32"},
    }
)


@pytest.fixture(autouse=True, scope="module")
def torch_as_it_was() -> Iterator[None]:
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `mvtec` with the class cloth: 10 good ones to train with, 5 good and 5 scratched ones to test."""
    folder, rng = tmp_path_factory.mktemp("datasets"), np.random.default_rng(0)
    for part, count in (("train/good", 10), ("test/good", 5), ("test/scratch", 5)):
        for index in range(count):
            image = (0.5 + 0.1 * rng.standard_normal((64, 64, 1)).repeat(3, axis=2)).clip(0, 1).astype(np.float32)
            if part.endswith("scratch"):
                mask = np.zeros((64, 64), dtype=np.bool_)
                mask[20:28, 8 : 30 + 4 * index] = True
                image[mask] = 0.95
                images.write(folder / "mvtec/cloth/ground_truth/scratch" / f"{index:03}_mask.png", mask)
            images.write(folder / "mvtec/cloth" / part / f"{index:03}.png", image)
    return folder


@pytest.fixture(scope="module")
def cloth(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    places = subjects.choose(subjects.find_places([root]), ["cloth"])
    return subjects.load(places, tmp_path_factory.mktemp("built"), PARAMS)[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def result(cloth: Subject, work: Path) -> accuracy.AccuracyResult:
    """Two seeds, two classes: the same images under two names."""
    twin = Subject("twin", cloth.rows, cloth.root)
    return accuracy.run([cloth, twin], PARAMS, (0, 1), work, draws=50, methods=SOME, tell=lambda words: None)


def test_every_class_and_detector_has_a_line_and_the_mean_is_theirs(result: accuracy.AccuracyResult) -> None:
    assert [line.category for line in result.lines] == [n for n in ("cloth", "twin", MEAN) for _ in SOME]
    by = {(line.category, line.method): line for line in result.lines}
    for method in SOME:
        for figure in FIGURES:
            parts = [by[name, method].figures[figure] for name in ("cloth", "twin", MEAN)]
            assert all(part is not None and part.low - 0.02 <= part.value <= part.high + 0.02 for part in parts)
            assert parts[2].value == pytest.approx((parts[0].value + parts[1].value) / 2)  # type: ignore[union-attr]
        for cost in COSTS:
            own, twin, mean = (by[name, method].costs[cost] for name in ("cloth", "twin", MEAN))
            assert own is not None
            assert twin is not None
            assert own > 0
            assert mean == pytest.approx((own + twin) / 2)


def test_gaps_are_ours_minus_the_other_and_name_the_best_yardstick(result: accuracy.AccuracyResult) -> None:
    by = {(line.category, line.method): line for line in result.lines}
    for gap in result.gaps:
        ours, other = (by[gap.category, m].figures[gap.figure] for m in (OURS, gap.other))
        assert ours is not None
        assert other is not None
        assert gap.difference.value == pytest.approx(ours.value - other.value)
    best = [gap for gap in result.gaps if gap.best]
    assert len(best) == 3 * (len(FIGURES) - 1), "all but pixel F1, for two classes and their mean"
    assert "covering" not in {gap.other for gap in best}, "the untrained codes are our own memory"


def test_a_second_run_finds_every_result(result: accuracy.AccuracyResult, cloth: Subject, work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "results").iterdir()}
    again = accuracy.run([cloth], PARAMS, (0, 1), work, draws=50, methods=SOME, tell=lambda words: None)
    assert {path: path.stat().st_mtime_ns for path in (work / "results").iterdir()} == before
    assert again.lines == [line for line in result.lines if line.category == "cloth"]


def test_half_a_result_is_measured_again(result: accuracy.AccuracyResult, cloth: Subject, work: Path) -> None:
    """A kill between the two files leaves no JSON."""
    (file,) = (work / "results").glob("cloth-control-0-*.json")
    kept = json.loads(file.read_text())
    file.unlink()
    found = benchmark.entry(BenchmarkContext(cloth, PARAMS, work), "control", 0)
    assert {f: found.facts[f] for f in FIGURES} == {f: kept[f] for f in FIGURES}
    assert file.exists()


def test_a_killed_measurement_is_told_in_words() -> None:
    with pytest.raises(PvqaeError, match="the process that measured was killed"):
        benchmark._apart(os._exit, 1)  # type: ignore[arg-type]


def test_yardsticks_do_not_depend_on_what_only_ours_reads(cloth: Subject, work: Path) -> None:
    context = BenchmarkContext(cloth, PARAMS, work)
    other = PARAMS.model_copy(update={"train": config.Train(steps=77)})
    assert benchmark._key(context, "control", PARAMS) == benchmark._key(context, "control", other)
    assert benchmark._key(context, OURS, PARAMS) != benchmark._key(context, OURS, other)
    reseeded = PARAMS.model_copy(update={"seed": 5})
    assert all(benchmark._key(context, m, PARAMS) != benchmark._key(context, m, reseeded) for m in SOME)


def test_a_class_without_masks_has_no_pixel_figures(cloth: Subject, tmp_path: Path) -> None:
    bare = Subject("bare", cloth.rows.assign(mask_path=""), cloth.root)
    found = accuracy.run([bare], PARAMS, (0,), tmp_path, draws=20, methods=(OURS, "control"), tell=lambda words: None)
    assert found.lines[0].figures["image_auroc"] is not None
    assert found.lines[0].figures["pixel_auroc"] is None
    found.write(tmp_path / "out")
    assert "| - |" in (tmp_path / "out/accuracy.md").read_text()


def test_tables_hold_every_line(result: accuracy.AccuracyResult, tmp_path: Path) -> None:
    result.write(tmp_path)
    text = (tmp_path / "accuracy.md").read_text()
    assert text.count("| PatchCore 1 % |") >= 3
    assert len(pd.read_csv(tmp_path / "accuracy.csv")) == len(result.lines)
    assert len(json.loads((tmp_path / "accuracy.json").read_text())["gaps"]) == len(result.gaps)
    console = Console(record=True, width=160)
    result.show(console)
    assert "covering codes, untrained" in console.export_text()


def test_the_means_of_kept_counts_are_the_exact_figures(
    cloth: Subject, work: Path, result: accuracy.AccuracyResult
) -> None:
    """What is read back from disk gives the figure that was written with it."""
    context = BenchmarkContext(cloth, PARAMS, work)
    entry = benchmark.entry(context, OURS, 0)
    assert len(entry.counts) == len(entry.scores) == len(context.test)

    total = PixelMetrics()
    for counts in entry.counts:
        total.add_counts(counts)
    assert total.auroc() == pytest.approx(entry.facts["pixel_auroc"], abs=1e-12)
    assert total.aupro() == pytest.approx(entry.facts["aupro"], abs=1e-12)
    assert total.aupro(0.05) == pytest.approx(entry.facts["aupro_05"], abs=1e-12)
    assert total.f1_max() == pytest.approx(entry.facts["pixel_f1"], abs=1e-12)
    assert entry.facts["aupro_05"] < entry.facts["aupro"]


def test_classes_are_found_below_folders_named_after_sources(root: Path) -> None:
    places = subjects.find_places([root])
    assert (places[0].source, places[0].category) == ("mvtec", "cloth")
    assert [p.category for p in subjects.choose(places, [])] == ["cloth"]
    assert [p.category for p in subjects.choose(places, ["demo"])] == ["brick", "grass", "gravel"]
    assert subjects.find_places([root / "mvtec"])[0].category == "cloth", "one layout by itself"
    with pytest.raises(DataError, match="no class screw; there are cloth, brick"):
        subjects.choose(places, ["screw"])


def test_several_roots_are_searched_and_the_first_one_with_a_class_counts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = tmp_path / "more"
    for name in ("cloth", "screw"):
        shutil.copytree(root / "mvtec/cloth", more / "mvtec" / name)
    monkeypatch.setenv("PVQAE_DATASETS", os.pathsep.join(map(str, (root, more))))
    places = [place for place in subjects.find_places(subjects.dataset_roots()) if place.source != "demo"]
    assert [(p.category, p.folder) for p in places] == [("cloth", root / "mvtec"), ("screw", more / "mvtec")]
    assert subjects.dataset_roots([str(more)]) == [more], "what is given comes before the environment"
    with pytest.raises(DataError, match=r"nowhere: expected a folder with datasets, found none; mend --data"):
        subjects.dataset_roots([tmp_path / "nowhere"])


def test_the_subject_is_what_a_workspace_would_have(cloth: Subject, root: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "tiny")
    layout.raw.parent.mkdir(parents=True)

    shutil.copytree(root / "mvtec", layout.raw)
    build.build(tmp_path, PARAMS)
    own = manifest.read(layout.manifest)
    kept = own[own["split"] != "gate"]
    columns = ["sample_id", "sha256", "group_id", "split", "label", "kind"]
    pd.testing.assert_frame_equal(cloth.rows[columns], kept[columns].reset_index(drop=True))


def test_the_command_runs_on_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(config.dump(config.Params()))
    options = ["--quick", "--classes", "brick", "--set", "compute.threads=1"]
    found = CliRunner().invoke(main.app, ["bench", "accuracy", *options])
    assert found.exit_code == 0, found.output
    text = (tmp_path / "reports/accuracy/accuracy.md").read_text()
    assert all(accuracy.NAMES[method] in text for method in METHODS)


def test_methods_are_chosen_by_name() -> None:
    assert accuracy.known_methods([]) == METHODS
    assert accuracy.known_methods([OURS]) == (OURS,)
    with pytest.raises(ConfigError, match=r"expected some of pvqae, .* found padim"):
        accuracy.known_methods([OURS, "padim"])
    assert accuracy.known_methods([OURS], ["anomalib_padim"]) == (OURS, "anomalib_padim")
    assert accuracy.known_methods([], ["all"]) == (*METHODS, *RIVALS)
    with pytest.raises(ConfigError, match=r"--rival: expected some of all, anomalib_patchcore_1, .* found halcon"):
        accuracy.known_methods([], ["halcon"])
