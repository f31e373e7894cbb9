"""Pixels of fewer bits than their file: told at the check, and read with their range after its repair."""

import ast
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pvqae.core import config
from pvqae.core.errors import DataError, ValidationFailed
from pvqae.core.layout import Layout
from pvqae.datasets import build, validation
from pvqae.samples import images, manifest
from tests.pvqae.samples.test_images import deep_png

ROOT = Path(__file__).parents[3]
BITS = (8, 10, 12)


def scene(number: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(number).uniform(0.3, 1.0, (side, side))


def dataset(root: Path, bits: int, suffix: str = "png") -> Layout:
    """A class of 30 good parts, their samples of `bits` bit in files of 16."""
    layout = Layout(root, "cam")
    for number in range(30):
        file = layout.raw / "cap" / "good" / f"{number:03}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(scene(number) * (2**bits - 1)).astype(np.uint16)).save(file)
    one = {"network": "cap", "prior": "cap"}
    known = {"networks": {"cap": {"classes": ["cap"]}}, "classes": {"cap": one}}
    priors = {"cap": {"classes": ["cap"], "allocations": "models/cam/networks/cap"}}
    layout.classes_file.write_text(yaml.safe_dump({"dataset": "cam", **known, "priors": priors}))
    return layout


def params(bits: int | str) -> config.Params:
    return config.parse({"data": {"name": "cam", "source": "folder"}, "image": {"bits": bits}})


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", BITS)
def test_the_check_names_the_bits_and_what_it_says_helps(tmp_path: Path, bits: int, suffix: str) -> None:
    layout = dataset(tmp_path, bits, suffix)
    build.build(tmp_path, params("auto"))
    with pytest.raises(ValidationFailed, match=rf"nothing above {2**bits - 1} of 65535 .* set image.bits to {bits},"):
        validation.check(layout, params("auto"))
    build.build(tmp_path, params(bits))
    assert validation.check(layout, params(bits)).rows
    frame = manifest.read(layout.manifest)
    assert set(frame["bit_depth"]) == {bits}
    for path in frame["path"]:  # also those that were made for the gate
        assert 0.5 < images.read(path, layout.data, bits).mean() < 0.8
    np.testing.assert_allclose(
        images.read(layout.raw / "cap" / "good" / f"000.{suffix}", bits=bits)[..., 0], scene(0), atol=2**-bits
    )


def test_images_that_are_really_dark_pass_with_sixteen(tmp_path: Path) -> None:
    layout = dataset(tmp_path, 12)
    build.build(tmp_path, params(16))
    assert any(text.startswith("shade") for text in validation.check(layout, params(16)).warnings)


def test_a_value_above_the_range_is_refused_and_what_it_says_helps(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"up to 4095 \(image.bits 12\), found 5000; set image.bits to 13 or more"):
        images.read(tmp_path / "a.png", bits=12)
    assert images.read(tmp_path / "a.png", bits=13).max() == pytest.approx(5000 / 8191)


def test_eight_bit_files_and_files_that_state_their_range_are_read_as_ever(tmp_path: Path) -> None:
    grey = np.rint(scene(0) * 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 24 24 1023\n" + np.rint(scene(0) * 1023).astype(">u2").tobytes())
    for name in ("a.png", "a.pgm"):
        expected = images.read(tmp_path / name)
        np.testing.assert_allclose(expected[..., 0], scene(0), atol=1 / 255)
        for bits in (8, 10, 14):
            np.testing.assert_array_equal(images.read(tmp_path / name, bits=bits), expected)


def test_deep_colour_of_few_bits_is_refused_and_what_it_says_helps(tmp_path: Path) -> None:
    values = np.rint(np.dstack([scene(n) for n in range(3)]) * 4095).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    with pytest.raises(DataError, match=r"expected grey for image.bits 12, found 16 bit colour; save it with 8 bit"):
        images.read(tmp_path / "a.png", bits=12)
    Image.fromarray((values >> 4).astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_allclose(images.read(tmp_path / "a.png", bits=12), values / 4095, atol=1 / 255)


READS = {"read": 2, "decode": 2, "inspect": 2, "header": 2}  # positional arguments before `bits`
# Photographs of packages, MTSD's 8 bit files, headers whose bit depth nobody looks at.
WITHOUT = {
    "pvqae/datasets/demo.py",
    "pvqae/features/richness.py",
    "pvqae/serving/batch.py",
}


def bare(call: ast.Call) -> bool:
    """Whether a call reads an image without saying with which bits."""
    place = call.func
    name = place.attr if isinstance(place, ast.Attribute) else place.id if isinstance(place, ast.Name) else ""
    owner = place.value.id if isinstance(place, ast.Attribute) and isinstance(place.value, ast.Name) else ""
    ours = owner in ("images", "inspection") or (owner == "" and name == "inspect")
    told = len(call.args) > READS.get(name, 99) or any(word.arg == "bits" for word in call.keywords)
    return ours and name in READS and not told


def test_every_image_is_read_with_the_setting() -> None:
    found = {
        file.relative_to(ROOT).as_posix()
        for folder in ("pvqae", "flows")
        for file in (ROOT / folder).rglob("*.py")
        if any(bare(node) for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call))
    }
    assert found <= WITHOUT
