from pathlib import Path

import pytest
import torch

from pvqae import runtime
from pvqae.config import Compute


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("networks", "parallel", "threads"), [(1, 1, 4), (2, 2, 2), (3, 3, 1), (9, 4, 1)])
def test_cores_are_divided_among_processes(networks: int, parallel: int, threads: int) -> None:
    plan = runtime.plan(Compute(), networks)
    assert (plan.device, plan.parallel, plan.threads) == ("cpu", parallel, threads)


@pytest.mark.usefixtures("four_cores")
def test_what_is_asked_for_is_taken() -> None:
    plan = runtime.plan(Compute(precision="float32", parallel=2, threads=3), 5)
    assert (plan.precision, plan.parallel, plan.threads) == ("float32", 2, 3)
    assert str(plan) == "device cpu, precision float32, 2 at once, 3 threads each"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "float32")])
def test_bf16_is_chosen_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
) -> None:
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: fast)
    assert runtime.plan(Compute(), 1).precision == precision


def test_autocast_follows_the_plan() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with runtime.autocast(runtime.Plan("cpu", precision, 1, 1)):
            assert (x @ x).dtype == dtype


def test_torch_is_not_asked_where_no_driver_has_made_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked() -> bool:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(runtime, "DRIVERS", (tmp_path / "nvidiactl",))
    assert runtime.plan(Compute(), 1).device == "cpu"
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(AssertionError):
        runtime.plan(Compute(), 1)
    assert runtime.plan(Compute(device="cpu"), 1).device == "cpu"
