import gc
from pathlib import Path

import pytest
import torch

from pvqae.features.examples import _Column


@pytest.mark.parametrize("bound", [0, 100, 2**20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.bool])
def test_what_was_appended_comes_back_in_order_wherever_it_lay(tmp_path: Path, bound: int, dtype: torch.dtype) -> None:
    column = _Column(tmp_path, bound)
    parts = [
        torch.randint(0, 2, (count, 3, 2), generator=torch.Generator().manual_seed(count)) for count in (1, 4, 2, 9)
    ]
    for part in parts:
        column.append(part.to(dtype))
    found = column.tensor()
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat(parts).to(dtype))
    chosen = torch.tensor([3, 0, 15])
    assert torch.equal(found[chosen], torch.cat(parts).to(dtype)[chosen])


def test_the_rows_outlive_the_column_and_leave_no_file(tmp_path: Path) -> None:
    column = _Column(tmp_path / "new", bound=0)
    column.append(torch.arange(6.0).view(3, 2))
    found = column.tensor()
    del column
    gc.collect()
    assert found.sum() == 15
    assert not list(tmp_path.rglob("*.*"))
    assert [p.name for p in tmp_path.rglob("*")] == ["new"]
