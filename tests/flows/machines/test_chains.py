"""What is asked of another machine: chains of stages, and the little that it needs to know."""

from collections.abc import Sequence
from itertools import pairwise

import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.core import classes
from flows.machines import fan_out
from flows.machines.fan_out import JobSpec
from flows.train import stages
from pvqae.core import config


def graph(names: Sequence[str], network: str, grouping: str) -> stages._Graph:
    params = {"data": {"name": "x"}, "model": {"network": network}, "prior": {"grouping": grouping}}
    return stages.class_stages(classes.classes(config.parse(params), names))


GRAPHS = st.builds(
    graph,
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True),
    st.sampled_from(["per_class", "shared"]),
    st.sampled_from(["per_class", "universal"]),
)


@given(GRAPHS)
def test_chains_hold_every_stage_once_and_keep_the_order(found: stages._Graph) -> None:
    joined = fan_out.chains(found)
    assert sorted(stage for chain in joined for stage in chain) == sorted(found)
    done: set[str] = set()
    for chain, needs in joined.items():
        assert {stage for need in needs for stage in need} <= done
        for stage in chain:
            assert set(found[stage]) <= done
            done.add(stage)


def test_a_class_of_its_own_is_one_chain() -> None:
    joined = fan_out.chains(graph(["a", "b"], "per_class", "per_class"))
    a, b = (tuple(f"{kind}@{name}" for kind in ("train", "prior", "calibrate", "evaluate")) for name in "ab")
    assert joined == {a: (), b: ()}


def test_what_classes_share_is_a_chain_of_its_own() -> None:
    joined = fan_out.chains(graph(["a", "b"], "per_class", "universal"))
    assert joined["prior@all",] == (("train@a",), ("train@b",))
    assert joined["calibrate@b", "evaluate@b"] == (("prior@all",),)


def test_the_lock_of_an_order_has_its_own_entries_only() -> None:
    found = graph(["a", "b"], "per_class", "per_class")
    names = [*found, "manifest", "validate", "demo@x"]
    lock = yaml.safe_dump({"schema": "2.0", "stages": {name: {"cmd": name} for name in names}})
    part = yaml.safe_load(fan_out.part_of_lock(lock, fan_out.above(found, ["calibrate@a"])))
    assert part["schema"] == "2.0"
    assert set(part["stages"]) == {"manifest", "validate", "demo@x", "train@a", "prior@a", "calibrate@a"}


def test_the_key_of_an_order_changes_with_whatever_it_says() -> None:
    one = JobSpec("x", "sha", ("train@a",), {"params.yaml": "seed: 0"}, {"a": ("pvqae-x-a", "1")})
    others = [
        JobSpec("x", "other", ("train@a",), one.files, one.parents),
        JobSpec("x", "sha", ("train@b",), one.files, one.parents),
        JobSpec("x", "sha", ("train@a",), {"params.yaml": "seed: 1"}, one.parents),
        JobSpec("x", "sha", ("train@a",), one.files, {}),
    ]
    keys = sorted(item.key for item in (one, *others))
    assert all(first != second for first, second in pairwise(keys))
    values = {"dataset": "x", "git_sha": "sha", "stages": ["train@a"], "files": one.files}
    assert JobSpec.parse({**values, "parents": {"a": ["pvqae-x-a", "1"]}}) == one


def test_an_order_has_the_classes_that_share_something_with_its_own() -> None:
    def part(prior: str, *stages: str) -> dict[str, object]:
        params = config.parse({"data": {"name": "x"}, "prior": {"grouping": prior}})
        return fan_out.part_of_classes(classes.classes(params, ["a", "b", "c"]), stages)

    own = part("per_class", "train@b", "evaluate@b")
    for key in ("networks", "priors", "classes"):
        assert list(own[key]) == ["b"]  # type: ignore[call-overload]
    assert own["dataset"] == "x"
    assert list(part("universal", "train@b")["networks"]) == ["a", "b", "c"]  # type: ignore[call-overload]
