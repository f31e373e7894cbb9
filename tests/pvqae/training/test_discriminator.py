import pytest
import torch

from pvqae.samples.classes import GROUPINGS
from pvqae.training import losses
from pvqae.training.losses import Discriminator


def test_one_logit_per_patch_of_eight_pixels() -> None:
    assert Discriminator(8)(torch.rand(2, 3, 64, 32)).shape == (2, 1, 8, 4)


def test_hinge_is_two_when_undecided_and_zero_when_sure() -> None:
    assert Discriminator.hinge(torch.zeros(4), torch.zeros(4)).item() == 2
    assert Discriminator.hinge(torch.full((4,), 1.5), torch.full((4,), -1.5)).item() == 0
    assert Discriminator.hinge(torch.full((4,), -1.0), torch.full((4,), 1.0)).item() == 4


def test_the_decoder_wants_to_be_taken_for_real() -> None:
    assert Discriminator.adversarial(torch.full((3,), 2.0)) < Discriminator.adversarial(torch.full((3,), -2.0))


@pytest.mark.parametrize(("rec", "adv", "weight"), [(1.0, 4.0, 0.25), (8.0, 1.0, losses._WEIGHT_CAP), (1.0, 0.0, 0.75)])
def test_the_weight_is_the_ratio_of_gradients_and_capped(rec: float, adv: float, weight: float) -> None:
    layer = torch.ones(3, requires_grad=True)
    found = Discriminator.adaptive_weight(rec * layer.sum(), adv * layer.sum(), layer)
    assert found.item() == pytest.approx(weight, rel=1e-3)
    assert not found.requires_grad


@pytest.mark.parametrize("name", GROUPINGS)
def test_a_grouping_gives_every_class_one_prior(name: str) -> None:
    groups = GROUPINGS[name](["a", "b", "c"])
    assert sorted(member for group in groups.values() for member in group) == ["a", "b", "c"]


def test_the_groupings_of_the_paper() -> None:
    assert GROUPINGS["per_class"](["a", "b"]) == {"a": ["a"], "b": ["b"]}
    assert len(GROUPINGS["universal"](["a", "b"])) == 1
