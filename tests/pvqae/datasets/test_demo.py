import time
from collections import Counter
from pathlib import Path

from pvqae.core import config, files
from pvqae.datasets import demo, sources, splits
from pvqae.samples import images


def contents(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): files.digest(p) for p in root.rglob("*") if p.is_file()}


def test_the_same_bytes_each_time_and_quickly(tmp_path: Path) -> None:
    start = time.monotonic()
    demo.make(tmp_path / "a")
    assert time.monotonic() - start < 10
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old.png").write_bytes(b"")
    demo.make(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_what_it_says_and_holds(tmp_path: Path) -> None:
    demo.make(tmp_path)
    assert (tmp_path / "README.txt").read_text().startswith("demo, synthetic, no quality claim")
    assert sources.categories("demo", tmp_path) == ["brick", "grass", "gravel"]
    found = sources.scan("demo", tmp_path)
    trained = {f.group_id for f in found if f.official == "train"}
    assert not trained & {f.group_id for f in found if f.official == "test"}
    assert {f.kind for f in found if f.label == "defect"} == set(demo._KINDS)
    for f in found:
        if f.mask_path:
            mask = images.read_mask(f.mask_path)
            assert mask.shape == (128, 128)
            assert 0 < mask.mean() < 0.5
    assert {images.header(f.path) for f in found} == {images.Header(128, 128, 1, 8, "")}


def test_every_class_has_images_for_every_split(tmp_path: Path) -> None:
    """A hash of only 12 groups could leave a split empty; the cells' names are chosen so that it does not."""
    demo.make(tmp_path)
    found = sources.scan("demo", tmp_path)
    chosen = splits.assign_splits(found, config.load(Path(__file__).parents[3] / "params.yaml").data.shares)
    sizes = Counter((f.category, split) for f, split in zip(found, chosen, strict=True))
    for category in demo.TURNS:
        for split, least in {"train": 24, "calibrate": 8, "test": 32, "gate": 4}.items():
            assert sizes[category, split] >= least
