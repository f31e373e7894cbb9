"""Kept features: never another result, only new images decoded, damage counts as absence."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.features.examples import Examples, prepare, retake
from pvqae.features.features import Store
from pvqae.model import backbones
from pvqae.samples import images

Textures = tuple[Path, pd.DataFrame]
Params = Callable[..., config.Params]
NAMES = ["vqgan", "efficientnet_lite0"]


@pytest.fixture
def read(textures: Textures, params: Params) -> Callable[..., Examples]:
    def make(
        store: Store | None, count: int = 12, backbone: str = NAMES[1], measure: str = "variance", size: int = 64
    ) -> Examples:
        network = backbones.make(params(backbone).model).eval()
        root, rows = textures
        return prepare(rows.iloc[:count], root, config.Image(size=size), network, measure, store=store)

    return make


def tensors(found: Examples) -> list[torch.Tensor]:
    kept = found.features
    own = [found.rows, found.cost, found.valid, *([] if found.images is None else [found.images])]
    return own if kept is None else [*own, *kept.levels, kept.target]


def same(a: Examples, b: Examples) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def counts(store: Store) -> tuple[int, int, int, int]:
    found = store.counts.facts()
    return found["images"], found["decoded"], found["backbone_views"], found["cache_hits"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_speed_depends_on_the_store(read: Callable[..., Examples], tmp_path: Path, name: str) -> None:
    plain = read(None, backbone=name)
    first, second = Store(tmp_path, 1), Store(tmp_path, 1)
    assert same(read(first, backbone=name), plain)
    assert same(read(second, backbone=name), plain)
    assert counts(first) == (12, 12, 12 if name == NAMES[1] else 0, 0)
    assert counts(second) == (12, 0, 0, 12)
    assert not list(tmp_path.rglob("*.part"))


def test_an_image_gives_the_same_whatever_is_read_beside_it(read: Callable[..., Examples]) -> None:
    many, one = read(None), read(None, 1)
    assert many.features is not None
    assert one.features is not None
    assert torch.equal(many.features.target[:1], one.features.target)


def test_only_new_images_are_decoded(read: Callable[..., Examples], tmp_path: Path) -> None:
    read(Store(tmp_path, 1), 8)
    store = Store(tmp_path, 1)
    read(store)
    assert counts(store) == (12, 4, 4, 8)
    assert "4 decoded, 4 views through the backbone" in str(store.counts)


def test_another_measure_needs_pixels_but_no_backbone_and_none_needs_neither(
    read: Callable[..., Examples], tmp_path: Path
) -> None:
    read(Store(tmp_path, 1))
    other, none = Store(tmp_path, 1), Store(tmp_path, 1)
    assert same(read(other, measure="gradient"), read(None, measure="gradient"))
    assert same(read(none, measure="none"), read(None, measure="none"))
    assert counts(other) == (12, 12, 0, 0)
    assert counts(none) == (12, 0, 0, 12)


def test_another_size_or_another_content_is_another_image(tmp_path: Path, read: Callable[..., Examples]) -> None:
    read(Store(tmp_path / "kept", 1), 2)
    bigger = Store(tmp_path / "kept", 1)
    read(bigger, 2, size=96)
    assert bigger.counts.decoded == 2
    backbone = backbones.make(config.Model(levels=2)).eval()
    rows, store = pd.DataFrame({"path": ["a.png"]}), Store(tmp_path / "kept", 1)
    for value in (0.2, 0.8):  # edited in place
        images.write(tmp_path / "a.png", np.full((64, 64, 3), value, np.float32))
        prepare(rows, tmp_path, config.Image(size=64), backbone, "none", store=store)
    assert counts(store) == (2, 2, 2, 0)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps([1, 2, 3]))


@pytest.mark.parametrize("damage", [flipped, cut, emptied, pickled])
def test_a_damaged_file_is_computed_again(
    read: Callable[..., Examples], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    plain = read(Store(tmp_path, 1), 2)
    for path in tmp_path.rglob("*.safetensors"):
        damage(path)
    store, later = Store(tmp_path, 1), Store(tmp_path, 1)
    assert same(read(store, 2), plain)
    assert counts(store) == (2, 2, 2, 0)
    read(later, 2)
    assert later.counts.cache_hits == 2


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store, block = Store(tmp_path, 2.5e-6), {"x": torch.zeros(250)}  # files of about 1.2 kB
    for age, key in ((30, "aa"), (20, "bb"), (10, "cc")):
        store.put(key, block)
        os.utime(store._path(tmp_path, key), (1e9 - age, 1e9 - age))
    assert store.get("aa") is not None  # used just now
    store.trim()
    assert [store.get(key) is not None for key in ("aa", "bb", "cc")] == [True, False, True]
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 2500


def test_a_full_or_forbidden_disk_costs_speed_only(read: Callable[..., Examples], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store(tmp_path / "file", 1)
    assert same(read(store, 2), read(None, 2))
    assert store.counts.cache_hits == 0


def test_zero_keeps_nothing(read: Callable[..., Examples], tmp_path: Path) -> None:
    read(Store(tmp_path / "kept", 0), 2)
    assert not (tmp_path / "kept").exists()


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    backbone = backbones.make(config.Model(levels=2)).eval()
    with pytest.raises(DataError, match=r"gone\.png: expected an image"):
        prepare(pd.DataFrame({"path": ["gone.png"]}), tmp_path, config.Image(size=64), backbone, "none")


def test_a_project_shares_its_cache_with_the_workspaces_below_it(tmp_path: Path) -> None:
    own = Layout(tmp_path, "demo").features
    assert own == tmp_path / ".pvqae" / "cache" / "features"
    for below in ("runs/mvtec", "experiments/x/.pvqae/runs/y"):
        assert Layout(tmp_path / ".pvqae" / below, "mvtec").features == own


def kept_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def swapped(files: list[Path]) -> None:
    """Each is whole, and another image's."""
    contents = [file.read_bytes() for file in files]
    for file, data in zip(files, [*contents[1:], contents[0]], strict=True):
        file.write_bytes(data)


def cut_short(files: list[Path]) -> None:
    for number, file in enumerate(files):
        os.truncate(file, file.stat().st_size * number // len(files))


def without_sums(files: list[Path]) -> None:
    for file in files:
        save_file(load_file(file), file)


@pytest.mark.parametrize("change", [swapped, cut_short, without_sums])
def test_a_kept_file_that_is_not_what_was_kept_under_its_name_counts_as_absent(
    read: Callable[..., Examples], tmp_path: Path, change: Callable[[list[Path]], None]
) -> None:
    plain = read(Store(tmp_path, 1))
    change(kept_files(tmp_path))
    store = Store(tmp_path, 1)
    assert same(read(store), plain)
    assert store.counts.cache_hits == 0


def test_what_was_read_from_the_store_stays_whatever_becomes_of_its_files(
    read: Callable[..., Examples], tmp_path: Path
) -> None:
    read(Store(tmp_path, 1))
    found = read(Store(tmp_path, 1))
    before = [x.clone() for x in tensors(found)]
    for file in kept_files(tmp_path):
        os.truncate(file, 0)
    assert all(torch.equal(x, y) for x, y in zip(tensors(found), before, strict=True))


def test_an_image_that_is_replaced_while_it_is_read_is_not_kept_under_the_first_one_s_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "a.png"
    first, second = (rng.random((64, 64, 3), dtype=np.float32) for _ in range(2))
    images.write(file, first)
    network, frame = backbones.make(params(NAMES[1]).model).eval(), pd.DataFrame({"path": ["a.png"]})

    def reading(store: Store | None) -> Examples:
        return prepare(frame, tmp_path, config.Image(size=64), network, "variance", store=store)

    plain, get = reading(None), Store.get

    def replaced(self: Store, key: str) -> object:  # after the hash is known, before anything is decoded
        images.write(file, second)
        return get(self, key)

    monkeypatch.setattr(Store, "get", replaced)
    assert same(reading(Store(tmp_path / "kept", 1)), plain)
    monkeypatch.undo()
    images.write(file, first)
    assert same(reading(Store(tmp_path / "kept", 1)), plain)


def test_an_image_taken_again_differs_by_less_than_a_grey_level_and_not_where_it_is_saturated(
    tmp_path: Path, params: Params
) -> None:
    pixels = np.full((64, 64, 3), 100 / 255, dtype=np.float32)
    pixels[:32], pixels[40:50] = 1, 0
    images.write(tmp_path / "a.png", pixels)
    network, frame = backbones.make(params(NAMES[0]).model).eval(), pd.DataFrame({"path": ["a.png"]})
    plain = prepare(frame, tmp_path, config.Image(size=64), network, "none")
    again, other = (retake(frame, [0], tmp_path, config.Image(size=64), network, seed) for seed in (0, 1))
    assert plain.images is not None
    assert again.images is not None
    assert other.images is not None
    away = (again.images - plain.images).abs()[0, 0].float()
    assert 0.2 / 255 < away[32:40].mean() < 0.3 / 255
    assert away.max() < 0.7 / 255  # half a level, and half precision
    assert away[:32].max() == away[40:50].max() == 0
    assert not torch.equal(again.images, other.images)
    assert same(again, retake(frame, [0], tmp_path, config.Image(size=64), network, 0))
