import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvqae.core import seeding

names = st.lists(st.one_of(st.integers(0, 99), st.text("abc", min_size=1, max_size=3)), max_size=3)


@given(st.integers(0, 2**40), names)
def test_a_derived_seed_fits_every_generator(seed: int, parts: list[object]) -> None:
    assert 0 <= seeding.derive(seed, *parts) < 2**63


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert seeding.derive(0, "weights", "full") == 2117298173900660198


def test_seed_and_each_name_matter() -> None:
    draws = [seeding.derive(*args) for args in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, 1, "a"))]
    assert len(set(draws)) == 5


def test_generators_repeat_themselves_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = (torch.rand(4, generator=seeding.generator(3, "x")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(seeding.numpy_generator(3, "x").random(4), seeding.numpy_generator(3, "x").random(4))


def test_initialise_fixes_the_weights_of_layers() -> None:
    layers = []
    for name in ("a", "a", "b"):
        seeding.initialise(0, name)
        layers.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(layers[0], layers[1])
    assert not torch.equal(layers[0], layers[2])
