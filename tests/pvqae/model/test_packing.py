"""Packed weights come back close, everything else as it was."""

import torch

from pvqae.core import tensors


def test_a_row_is_off_by_half_a_step_at_most() -> None:
    x = (
        torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 3, 6)[:, None, None, None]
    )
    found = tensors.pack("w", x)
    assert found["w"].dtype == torch.int8
    back = tensors.unpack(found)
    assert list(back) == ["w"]
    largest = x.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    assert bool(((back["w"] - x).abs() <= largest / 253).all())
    again = tensors.pack("w", back["w"])
    assert torch.equal(tensors.unpack(again)["w"], back["w"])


def test_rows_of_zeros_and_unpacked_tensors_stay() -> None:
    plain = {"half": torch.ones(2).half(), "count": torch.arange(3), "int8": torch.ones(2, 2, dtype=torch.int8)}
    back = tensors.unpack(tensors.pack("w", torch.zeros(2, 3)) | plain)
    assert torch.equal(back["w"], torch.zeros(2, 3))
    assert back["half"].dtype == torch.float32
    assert torch.equal(back["count"], plain["count"])
    assert torch.equal(back["int8"], plain["int8"])
