import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pvqae.model import layers
from pvqae.model.layers import _NormSilu


def layer(channels: int) -> _NormSilu:
    torch.manual_seed(0)
    made = _NormSilu(channels)
    torch.nn.init.uniform_(made.weight, 0.5, 1.5)
    torch.nn.init.normal_(made.bias)
    return made


def map_of(channels: int, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    scale = torch.rand(2, channels, 1, 1, generator=draws)
    return (scale * torch.randn(2, channels, 9, 7, generator=draws) + 3 * scale).to(
        torch.bfloat16, memory_format=torch.channels_last
    )


def results(made: _NormSilu, x: Tensor, gradient: Tensor, own: bool) -> list[Tensor]:
    """Output and gradients of map, weight and bias; not `own`: by PyTorch's formula, in the precision of `x`."""
    x, weight, bias = (t.detach().clone().to(x.dtype).requires_grad_() for t in (x, made.weight, made.bias))
    if own:
        made.zero_grad()
        out, weight, bias = made(x), made.weight, made.bias
    else:
        out = F.silu(F.group_norm(x, made.num_groups, weight, bias, made.eps))
    out.backward(gradient.to(out.dtype))
    return [t.detach().double() for t in (out, x.grad, weight.grad, bias.grad) if t is not None]


def away(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("channels", [3, 16, 64])
def test_values_and_gradients_in_bf16_are_nearer_to_the_exact_ones_than_pytorchs(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_PIECE", 20 * channels)  # several pieces, the last one smaller
    made, x, gradient = layer(channels), map_of(channels, 1), map_of(channels, 2)
    exact = results(made, x.double(), gradient, own=False)
    ours, theirs = (away(results(made, x, gradient, own), exact) for own in (True, False))
    assert len(exact) == 4
    assert max(ours) < 0.005
    assert all(a <= b * 1.05 for a, b in zip(ours, theirs, strict=True))


def test_layout_does_not_matter() -> None:
    made, x, gradient = layer(16), map_of(16, 1), map_of(16, 2)
    lying, standing = (
        results(made, x.contiguous(memory_format=form), gradient, own=True)
        for form in (torch.channels_last, torch.contiguous_format)
    )
    assert all(torch.equal(a, b) for a, b in zip(lying, standing, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_it_is_pytorchs(dtype: torch.dtype) -> None:
    made, x = layer(16), map_of(16, 3).to(dtype)
    with torch.no_grad():
        expected = F.silu(F.group_norm(x, made.num_groups, made.weight, made.bias, made.eps))
        assert torch.equal(made(x), expected)


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 8, 1, 1), (2, 1, 5, 3), (1, 8, 1, 6)])
def test_flat_and_small_maps_have_finite_gradients(shape: tuple[int, ...]) -> None:
    made, draws = layer(shape[1]), torch.Generator().manual_seed(5)
    gradient = torch.randn(shape, generator=draws).to(torch.bfloat16)
    flat, other = torch.full(shape, 0.3, dtype=torch.bfloat16), gradient.flip(-1)
    assert all(torch.isfinite(t).all() for t in results(made, flat, gradient, own=True))
    exact = results(made, other.double(), gradient, own=False)
    found = results(made, other, gradient, own=True)
    assert all((a - b).norm() < 0.02 * (1 + b.norm()) for a, b in zip(found, exact, strict=True))
