"""The rows that training reads: one file per network, three per class."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pvqae.core.layout import Layout
from pvqae.datasets import rules
from pvqae.samples import manifest
from pvqae.samples.classes import FROM_SCRATCH, Classes, _Member, _Prior


def frame() -> pd.DataFrame:
    values = [
        {"sample_id": f"{name}/{split}", "category": name, "split": split}
        for name in ("bolt", "nut")
        for split in manifest.SPLITS
    ]
    table = pd.DataFrame(values).reindex(columns=list(manifest.COLUMNS), fill_value="")
    return table.assign(**dict.fromkeys(manifest.NUMBERS, 8))


@pytest.mark.parametrize("networks", [{"bolt": ("bolt",), "nut": ("nut",)}, {"all": ("bolt", "nut")}])
def test_a_class_has_its_own_rows_whoever_shares_its_network(
    tmp_path: Path, networks: dict[str, tuple[str, ...]]
) -> None:
    network_of = {name: network for network, members in networks.items() for name in members}
    classes = Classes(
        "tiny",
        networks,
        {"all": _Prior(("bolt", "nut"), "models/tiny/networks")},
        {name: _Member(network, "all") for name, network in network_of.items()},
        dict.fromkeys(networks, FROM_SCRATCH),
    )
    layout = Layout(tmp_path, "tiny")
    manifest.write_rows(frame(), classes, layout)
    for name, network in network_of.items():
        normals = manifest.read(layout.class_rows(name, "normals"))
        assert list(normals["sample_id"]) == [f"{name}/calibrate", f"{name}/train"]
        assert list(manifest.read(layout.class_rows(name, "test"))["sample_id"]) == [f"{name}/test"]
        shared = manifest.read(layout.network_rows(network))
        assert normals.equals(shared[shared["category"] == name].reset_index(drop=True))


def test_white_space_is_no_name() -> None:
    """The rule lists its characters: all that Python calls white space, and control characters."""
    for code in range(0x3100):
        blank = chr(code).isspace() or code < 0x20 or code == 0x7F
        assert (re.search(rules._PRESENT, chr(code)) is None) == blank, hex(code)
    assert re.search(rules._PRESENT, " a ")
