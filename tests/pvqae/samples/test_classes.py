"""data/classes.yaml as the stages read it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.core.classes import classes as graph
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.samples import classes
from pvqae.samples.classes import GROUPINGS


def made(**sections: object) -> dict[str, Any]:
    return graph(config.parse({"data": {"name": "tiny"}, **sections}), ["nut", "bolt"])


def written(folder: Path, values: dict[str, Any]) -> Path:
    file = folder / "classes.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    return file


@pytest.mark.parametrize("network", ["per_class", "shared"])
@pytest.mark.parametrize("grouping", sorted(GROUPINGS))
def test_what_the_flows_write_is_what_the_stages_read(tmp_path: Path, network: str, grouping: str) -> None:
    values = made(model={"network": network}, prior={"grouping": grouping})
    found = classes.read(written(tmp_path, values), "tiny")
    assert sorted(found.classes) == ["bolt", "nut"]
    for name, member in found.classes.items():
        assert name in found.network(member.network)
        assert name in found.prior(member.prior).classes
    assert {prior.allocations for prior in found.priors.values()} == {
        item["allocations"] for item in values["priors"].values()
    }


@pytest.mark.parametrize("what", ["network", "prior", "member"])
def test_an_unknown_name_is_told_which_names_exist(tmp_path: Path, what: str) -> None:
    found = classes.read(written(tmp_path, made()), "tiny")
    with pytest.raises(ConfigError, match=r"'screw'; expected one of: bolt, nut"):
        getattr(found, what)("screw")


@pytest.mark.parametrize(
    ("part", "name", "value", "expected"),
    [
        ("priors", "nut", {"classes": ["nut"], "allocations": "/etc"}, "learn from a network's folder"),
        ("priors", "nut", {"classes": ["nut"], "allocations": "models/tiny/networks/../.."}, "a network's folder"),
        ("priors", "nut", {"classes": ["nut", "bolt"], "allocations": "models/tiny/networks"}, "exactly one prior"),
        ("priors", "nut", {"classes": ["nut"]}, "found KeyError"),
        ("networks", "nut", {"classes": []}, "exactly one network"),
        ("classes", "nut", {"network": "bolt", "prior": "nut"}, "exactly one network, the one that it names"),
        ("classes", "nut", {"network": "nut", "prior": "none"}, "exactly one prior, the one that it names"),
        ("classes", "../nut", {"network": "nut", "prior": "nut"}, "letters, digits"),
    ],
)
def test_what_does_not_fit_together_is_explained(
    tmp_path: Path, part: str, name: str, value: dict[str, Any], expected: str
) -> None:
    values = made()
    values[part][name] = value
    with pytest.raises(ConfigError, match=expected):
        classes.read(written(tmp_path, values), "tiny")
