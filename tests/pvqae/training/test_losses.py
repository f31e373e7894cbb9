import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from pvqae.training import losses
from pvqae.training.losses import ERRORS, LOSSES, Perceptual

GROUPS = {"features": (2, 6), "pixels": (3,)}


def pair(name: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, sum(GROUPS[name]), 16, 16)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


ALL = torch.ones(2, 16, 16, dtype=torch.bool)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_reconstruction_costs_nothing_and_another_something(name: str) -> None:
    x, y = pair(name)
    assert LOSSES[name](x, x.clone(), ALL, GROUPS[name]).item() == pytest.approx(0, abs=1e-6)
    assert LOSSES[name](x, y, ALL, GROUPS[name]).item() > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_mean_of_the_errors_of_its_cells(name: str) -> None:
    x, y = pair(name)
    valid = ALL.clone()
    valid[:, 11:] = False
    errors = ERRORS[name](x.requires_grad_(), y, GROUPS[name])
    assert errors.shape == (2, 16, 16)
    expected, found = errors[valid].mean(), LOSSES[name](x, y, valid, GROUPS[name])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5 if name == "features" else 0.05)  # windows reach out
    if name == "features":
        gradients = (torch.autograd.grad(3 * loss, x)[0] for loss in (expected, found))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_on_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    x, y = pair(name)
    valid = ALL.clone()
    valid[:, :, 10:] = False
    garbage = x.clone()
    garbage[..., 10:] = 0.9
    found = []
    for reconstruction in (x.requires_grad_(), garbage.requires_grad_()):
        value = LOSSES[name](reconstruction, y, valid, GROUPS[name])
        found.append((value.item(), *torch.autograd.grad(value, reconstruction)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.equal(found[0][1][..., :10], found[1][1][..., :10])
    assert found[0][1][..., 10:].abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_masked_views_count_by_their_valid_cells(name: str) -> None:
    x, y = pair(name)
    whole = LOSSES[name](x[:1], y[:1], ALL[:1], GROUPS[name])
    valid = ALL.clone()
    valid[1] = False
    assert LOSSES[name](x, y, valid, GROUPS[name]).item() == pytest.approx(whole.item(), rel=1e-5)


def test_every_tap_counts_alike_whatever_its_channels() -> None:
    target = torch.zeros(1, 8, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    prices = []
    for group in (slice(0, 2), slice(2, 8)):
        wrong = target.clone()
        wrong[:, group] = 1
        prices.append(losses._feature_loss(wrong, target, valid, (2, 6)).item())
    assert prices == [pytest.approx(0.5), pytest.approx(0.5)]


def test_similarity_is_scikit_images_with_a_uniform_window() -> None:
    x, y = pair("pixels")
    y = 0.7 * x + 0.3 * y
    ours = losses._similarity(x, y)[0, 3:-3, 3:-3].mean().item()  # away from the border, where windows are whole
    _, full = structural_similarity(
        x[0].double().numpy(),
        y[0].double().numpy(),
        channel_axis=0,
        data_range=1.0,
        use_sample_covariance=False,
        full=True,
    )
    assert ours == pytest.approx(full[:, 3:-3, 3:-3].mean(), abs=1e-4)


def test_similarity_of_equals_is_one_and_falls_with_noise() -> None:
    x, noise = pair("pixels")
    values = [losses._similarity(x, x + share * (noise - 0.5)).mean().item() for share in (0, 0.1, 0.3, 1)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True)


def test_half_precision_reconstructions_are_judged_in_full() -> None:
    x, y = pair("features")
    found = losses._feature_loss(x.bfloat16(), y, ALL, GROUPS["features"])
    assert found.dtype == torch.float32
    assert np.isfinite(found.item())


def test_a_perceptual_distance_is_of_what_is_seen_and_padding_is_right() -> None:
    distance, generator = Perceptual(), torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 32, 32, generator=generator).repeat_interleave(2, 2).repeat_interleave(2, 3)
    everything = torch.ones(1, 64, 64, dtype=torch.bool)
    assert distance(image, image.clone(), everything).item() == 0
    changed = image.clone().requires_grad_()
    with torch.no_grad():
        changed[:, :, 32:] = 0.5
    found = distance(changed, image, everything)
    assert 0 < found.item() <= 4
    upper = everything.clone()
    upper[:, 32:] = False
    assert distance(changed, image, upper).item() == 0
    torch.autograd.backward(found)
    assert changed.grad is not None
    assert changed.grad[:, :, 32:].abs().sum() > 0
    assert not any(weight.requires_grad for weight in distance.parameters())
