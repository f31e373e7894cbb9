"""A name is the same text from the folder through manifest, YAML, DVC's stages and the registry, and back."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from dvc.utils.serialize import parse_yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from flows.core import classes, lineage
from flows.machines import fan_out
from pvqae.core import config, plain_yaml
from pvqae.core.errors import ConfigError, DataError
from pvqae.core.layout import Layout
from pvqae.datasets import build, sources, validation
from pvqae.samples import classes as read_classes
from pvqae.samples import manifest
from pvqae.samples.classes import _RESERVED
from tests import names

ROOT = Path(__file__).parents[3]
slow = settings(max_examples=20, deadline=None)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "png")


@given(st.recursive(names.texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(names.texts, v, max_size=3)))
@example(list(names.TEXTS))
@example(dict.fromkeys(names.TEXTS, ""))
@example(["-_", "-_1", "+.inf", "0o_", "1__", ".e1", "-"])
def test_what_is_written_as_text_is_text_to_both_versions_of_yaml(value: Any) -> None:
    text = plain_yaml.dump({"key": value})
    assert yaml.safe_load(text) == {"key": value}
    assert parse_yaml(text, "x") == {"key": value}


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none())
@example(1e-5)
@example(-1e22)
def test_what_is_no_text_stays_what_it_is(value: Any) -> None:
    text = plain_yaml.dump([value])
    assert repr(yaml.safe_load(text)) == repr(parse_yaml(text, "x")) == repr([value])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our dvc.yaml, where DVC can list stages."""
    root = tmp_path_factory.mktemp("project")
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    Repo.init(str(root), no_scm=True).close()
    return root


def stages(root: Path) -> set[str]:
    with Repo(str(root)) as repo:
        return {str(stage.name) for stage in repo.index.stages}


@slow
@given(
    st.sampled_from(names.DATASETS), st.sets(names.class_names, min_size=1, max_size=3), st.sampled_from(["a", "01"])
)
@example("08", set(names.CLASSES), "null")
def test_a_class_is_the_same_from_its_folder_to_its_stages_and_rows(
    project: Path, dataset: str, found: set[str], stem: str
) -> None:
    layout = Layout(project, dataset)
    shutil.rmtree(project / "data", ignore_errors=True)
    for i, name in enumerate(sorted(found)):
        picture(layout.raw / name / "good" / f"{stem}.png", i)
    params = config.parse({"data": {"name": dataset, "source": "folder"}})
    (project / "params.yaml").write_text(config.dump(params))
    assert set(sources.categories("folder", layout.raw)) == found

    build.build(project, params)
    frame = manifest.read(layout.manifest)
    assert set(frame["category"]) == set(validation._table(layout.manifest, validation._REPEATED)["category"]) == found

    graph = classes.classes(params, classes.wanted(params, layout.raw))
    classes.write(layout.classes_file, graph)
    for part in (classes.read(layout.classes_file), parse_yaml(layout.classes_file.read_text(), "x")):
        assert part == graph
    known = read_classes.read(layout.classes_file, dataset)
    assert set(known.classes) == set(known.networks) == set(known.priors) == found
    manifest.write_rows(frame, known, layout)
    for name in found:  # a class may have none to train with
        assert set(manifest.read(layout.class_rows(name, "normals"))["category"]) <= {name}

    kinds = ("train", "prior", "calibrate", "evaluate")
    assert stages(project) == {
        "manifest",
        "validate",
        "report",
        *(f"{kind}@{name}" for kind in kinds for name in found),
    }
    for name in found:
        part = fan_out.part_of_classes(graph, [f"train@{name}"])
        assert set(parse_yaml(plain_yaml.dump(part), "x")["classes"]) == {name}
        assert lineage.Owner(dataset, name) in lineage.Owner.possible(lineage.model_name(dataset, name))


@slow
@given(st.lists(names.texts, min_size=2, max_size=2))
@example(["null", "NA"])
@example(["e\u0301", "\xe9"])
@example(["${key}", "1e5"])
def test_kinds_and_files_may_have_any_name_that_a_folder_has(
    tmp_path_factory: pytest.TempPathFactory, found: list[str]
) -> None:
    kind, stem = found
    assume(all(name and "/" not in name and not name.startswith(".") for name in found))
    assume(kind not in ("good", "masks", "ground_truth", "gate", "gate_masks", "arrived") and "\\" not in kind + stem)
    assume(not kind.startswith(("=", "+", "-", "@")))  # left out with a reason
    root = tmp_path_factory.mktemp("kinds")
    layout = Layout(root, "x")
    picture(layout.raw / "c" / "good" / f"{stem}.png", 0)
    picture(layout.raw / "c" / kind / f"{stem}.png", 1)
    build.build(root, config.parse({"data": {"name": "x", "source": "folder"}}))
    (defect,) = (
        manifest.read(layout.manifest).query("path.str.startswith('raw/') and label == 'defect'").to_dict("records")
    )
    assert (defect["kind"], defect["path"]) == (kind, f"raw/x/c/{kind}/{stem}.png")
    assert (layout.data / defect["path"]).is_file()


@pytest.mark.parametrize("name", ["a.b", "a b", "-a", "_a", "é", "a\n", "x" * 101, "${a}", *_RESERVED])
def test_a_folder_that_can_be_no_class_is_refused_by_its_name_and_a_renamed_one_is_not(
    tmp_path: Path, name: str
) -> None:
    picture(tmp_path / name / "good" / "0.png", 0)
    with pytest.raises(DataError, match="rename the folder") as caught:
        sources.categories("folder", tmp_path)
    assert name in str(caught.value)
    (tmp_path / name).rename(tmp_path / "renamed")
    assert sources.categories("folder", tmp_path) == ["renamed"]


@pytest.mark.parametrize("name", ["01", "no", "0x1f", "1.5"])
def test_a_name_without_quotes_is_refused_and_a_flow_repairs_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "classes.yaml"
    graph = classes.classes(config.parse({"data": {"name": "x"}}), ["a"])
    file.write_text(plain_yaml.dump(graph).replace("a:", f"{name}:"), "utf-8")
    with pytest.raises(ConfigError, match="a name in quotes"):
        read_classes.read(file, "x")
    assert classes.write(file, graph)
    assert set(read_classes.read(file, "x").classes) == {"a"}


def test_names_that_an_earlier_release_left_without_quotes_are_written_again(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    graph = classes.classes(config.parse({"data": {"name": "x"}}), ["08", "12e4"])
    file.write_text(classes._HEADER + yaml.safe_dump(graph, sort_keys=False), "utf-8")
    assert classes.read(file) == graph  # to PyYAML
    assert classes.write(file, graph)
    assert parse_yaml(file.read_text("utf-8"), "x") == graph


def test_a_part_of_the_lock_keeps_what_only_one_version_of_yaml_takes_for_a_text() -> None:
    stage = {"cmd": "pvqae train no", "params": {"params.yaml": {"data.name": "no", "data.categories": ["08", "12e4"]}}}
    lock = plain_yaml.dump({"schema": "2.0", "stages": {"train@no": stage}})
    assert parse_yaml(fan_out.part_of_lock(lock, ["train@no"]), "x")["stages"] == {"train@no": stage}


def test_keys_of_prefects_artifacts_are_of_one_dataset_each() -> None:
    words = [("train", name) for name in ("a-b", "a_b", "a--b", "ab")] + [
        ("gate", "a-b"),
        ("gate", "A-b"),
        ("gate", "a_b"),
    ]
    keys = [lineage.artifact_key(*each) for each in words]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in keys)
    assert lineage.artifact_key("train", "demo") == "train-demo"
