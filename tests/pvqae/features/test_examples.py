from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.features.examples import Examples, prepare
from pvqae.model import backbones
from pvqae.model.backbones import on_grid, repeat_border
from pvqae.samples import geometry, images

Make = Callable[[str], Examples]


def test_a_cell_is_image_where_half_of_it_is() -> None:
    valid = torch.zeros(1, 64, 64, dtype=torch.bool)
    valid[:, 16:] = True
    assert on_grid(valid, (2, 2)).tolist() == [[[True, True], [True, True]]]
    valid[:, 16] = False
    assert on_grid(valid, (2, 2)).tolist() == [[[False, False], [True, True]]]
    assert on_grid(valid, (64, 64)).equal(valid)


@pytest.mark.parametrize("ratio", [2.5, 10.0, 64.0])
@pytest.mark.parametrize("tall", [True, False])
def test_every_letterboxed_image_keeps_cells_of_every_grid(ratio: float, tall: bool) -> None:
    shape = (round(64 * ratio), 64, 3) if tall else (64, round(64 * ratio), 3)
    view = geometry.canvas(np.zeros(shape, np.float32), config.Image(size=128, aspect="letterbox")).views[0]
    for side in (4, 8, 16):
        kept = on_grid(torch.from_numpy(view.valid)[None], (side, side))[0]
        assert kept.any()
        assert not kept.all()


def test_padding_repeats_the_nearest_image_cell() -> None:
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[0, 1:3] = True
    valid[1, :, 2] = True
    found = repeat_border(torch.arange(32.0).view(2, 4, 4), valid)
    assert found[0].tolist() == [[4, 5, 6, 7], [4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]
    assert found[1].tolist() == [[18] * 4, [22] * 4, [26] * 4, [30] * 4]
    everything = torch.randn(2, 4, 4)
    assert torch.equal(repeat_border(everything, torch.ones_like(valid)), everything)


@pytest.mark.parametrize("name", ["vqgan", "efficientnet_lite0"])
def test_pixels_or_frozen_features_are_kept_never_both(examples: Make, name: str) -> None:
    found = examples(name)
    assert len(found) == 12
    assert (found.images is None) != (found.features is None)
    assert found.cost.shape == (12, 2, 2)
    assert found.valid.all()
    assert found.cost[:, 0].min() > found.cost[:, 1].max()  # flat above, squares below


def test_batches_show_every_view_once_as_float32(examples: Make) -> None:
    found = list(examples("efficientnet_lite0").batches(5))
    assert torch.cat([indices for indices, _ in found]).tolist() == list(range(12))
    assert [len(batch.cost) for _, batch in found] == [5, 5, 2]
    for _, batch in found:
        assert batch.features is not None
        assert {x.dtype for x in (*batch.features.levels, batch.features.target)} == {torch.float32}
        assert batch.valid.dtype == torch.bool


def test_a_subset_has_the_views_of_its_rows(examples: Make) -> None:
    keep = torch.zeros(12, dtype=torch.bool)
    keep[[2, 7]] = True
    for name in ("vqgan", "efficientnet_lite0"):
        whole, part = examples(name), examples(name).subset(keep)
        assert part.rows.tolist() == [2, 7]
        assert torch.equal(part.cost, whole.cost[[2, 7]])
        if whole.images is not None:
            assert part.images is not None
            assert torch.equal(part.images, whole.images[[2, 7]])
        else:
            assert whole.features is not None
            assert part.features is not None
            assert torch.equal(part.features.target, whole.features.target[[2, 7]])


def test_chosen_views_are_those_of_a_subset_without_a_copy(examples: Make) -> None:
    keep = torch.zeros(12, dtype=torch.bool)
    keep[[2, 7, 9]] = True
    for name in ("vqgan", "efficientnet_lite0"):
        whole = examples(name)
        part, chosen = whole.subset(keep), whole.chosen(keep)
        assert chosen.examples is whole
        assert len(chosen) == len(part) == 3
        assert torch.equal(chosen.rows, part.rows)
        one, other = (x.batch(torch.tensor([2, 0])) for x in (part, chosen))
        assert torch.equal(one.cost, other.cost)
        assert torch.equal(one.valid, other.valid)
        if one.images is not None:
            assert other.images is not None
            assert torch.equal(one.images, other.images)
        else:
            assert one.features is not None
            assert other.features is not None
            assert torch.equal(one.features.target, other.features.target)


def test_each_tile_knows_its_row(tmp_path: Path) -> None:
    pictures = {"a.png": (64, 160), "b.png": (64, 64)}
    for name, shape in pictures.items():
        images.write(tmp_path / name, np.full((*shape, 3), 0.5 if name == "a.png" else 0.8, np.float32))
    backbone = backbones.make(config.Model(backbone="vqgan", levels=1, width=8, code_dim=4))
    rows = pd.DataFrame({"path": list(pictures)})
    found = prepare(rows, tmp_path, config.Image(size=64, aspect="tile"), backbone, "none")
    assert found.rows.tolist() == [0, 0, 0, 1]
    assert found.images is not None
    assert found.images.float().mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.5, 0.5, 0.8], abs=0.01)


def test_no_rows_is_an_error_with_the_repair(tmp_path: Path) -> None:
    backbone = backbones.make(config.Model(backbone="vqgan", levels=1, width=8, code_dim=4))
    with pytest.raises(DataError, match="split train"):
        prepare(pd.DataFrame({"path": []}), tmp_path, config.Image(size=64), backbone, "none")
