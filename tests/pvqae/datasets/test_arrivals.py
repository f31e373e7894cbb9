"""Where arrived images lie in a dataset, which part they show, and which splits they may reach."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvqae.core.config import Shares
from pvqae.datasets import arrivals, sources, splits
from pvqae.datasets.layouts import pictures
from tests.pvqae.datasets.test_splits import member

SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("original", "name", "group"),
    [
        ("nut/p7__top.PNG", "p7__top-0123456789abcdef.png", "nut/arrived/p7"),
        ("nut/p7__side.jpg", "p7__side-0123456789abcdef.jpg", "nut/arrived/p7"),
        ("nut/day 3/0001.png", "0001-0123456789abcdef.png", "nut/arrived/0001-0123456789abcdef"),
        ("nut/__top.png", "top-0123456789abcdef.png", "nut/arrived/top-0123456789abcdef"),
        ("nut/../..\n;.png", "image-0123456789abcdef.png", "nut/arrived/image-0123456789abcdef"),
        ("nut/" + "x" * 300 + ".png", "x" * 60 + "-0123456789abcdef.png", f"nut/arrived/{'x' * 60}-0123456789abcdef"),
    ],
)
def test_names_are_safe_and_keep_the_part(original: str, name: str, group: str) -> None:
    assert arrivals.file_name(original, SHA) == name
    assert arrivals.group_id("nut", name) == group


@given(st.text(max_size=80), st.sampled_from([".png", ".JPG", ".tiff"]))
def test_any_name_becomes_one_file_that_a_scan_finds(text: str, suffix: str) -> None:
    name = arrivals.file_name(f"nut/x{text}{suffix}", SHA)
    assert name == Path(name).name
    assert not name.startswith(".")
    assert len(name) < 160
    assert Path(name).suffix == suffix.lower() or "/" in text


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ("folder", "nut/good/1.png"),
        ("mvtec", "nut/train/good/1.png"),
        ("btad", "nut/train/ok/1.png"),
        ("mtsd", "MT_Free/Imgs/exp1_num_1.jpg"),
        ("folder", "good/1.png"),
    ],
)
def test_every_layout_finds_what_arrived(tmp_path: Path, source: str, first: str) -> None:
    root = tmp_path / "nut"
    before = root / first
    before.parent.mkdir(parents=True)
    before.write_bytes(b"")
    (category,) = sources.categories(source, root)
    for part in ("good", "gate"):
        folder = root / "arrived" / category / part
        folder.mkdir(parents=True)
        (folder / f"p1__{part}-ab.png").write_bytes(b"")
    assert sources.categories(source, root) == [category]
    found = {f.path.name: f for f in sources.scan(source, root)}
    assert len(found) == 3
    good, gate = found["p1__good-ab.png"], found["p1__gate-ab.png"]
    assert (good.label, good.official, gate.official) == ("normal", "arrived", "gate")
    assert good.group_id == gate.group_id == f"{category}/arrived/p1"
    assert len(pictures(root / "arrived" / category / "good")) == 1


@pytest.mark.parametrize("official", ["train", None])
def test_what_arrived_reaches_the_gate_only_if_it_was_set_aside(official: str | None) -> None:
    shares = Shares()
    arrived = [member("nut", f"nut/arrived/{n}", "normal", "arrived") for n in range(2000)]
    before = [member("nut", f"nut/good/{n}", "normal", official) for n in range(500)]
    counts = Counter(splits.assign_splits(arrived + before, shares)[:2000])
    assert counts["gate"] == 0
    assert counts["calibrate"] / 2000 == pytest.approx(shares.calibrate, abs=0.03)
    assert counts["test"] / 2000 == pytest.approx(shares.test, abs=0.03)
    together = [member("nut", "nut/arrived/p", "normal", "arrived"), member("nut", "nut/arrived/p", "normal", "gate")]
    assert splits.assign_splits(together, shares) == ["gate", "gate"]
