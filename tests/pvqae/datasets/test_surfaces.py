from pathlib import Path

from pvqae.core import files
from pvqae.datasets import demo, sources


def test_the_same_bytes_each_time_and_no_image_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        demo.make_surfaces(tmp_path / name, 12)
    found = sources.scan("folder", tmp_path / "a")
    assert [(item.category, item.label) for item in found] == [("part", "normal")] * 12
    sums = [files.digest(item.path) for item in found]
    assert len(set(sums)) == 12
    assert sums == [files.digest(tmp_path / "b" / item.path.relative_to(tmp_path / "a")) for item in found]
