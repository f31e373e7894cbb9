import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pvqae.training import loop, run
from pvqae.training.loop import _History, _Timer

FACTS = {"step": 3, "kappa": 0.25}


def network(seed: int) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    """Two layers with optimisers; some steps taken, so that there is state to keep."""
    torch.manual_seed(seed)
    module = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(3)})
    optimisers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.AdamW(module[name].parameters()) for name in module
    }
    for _ in range(3):
        step(module, optimisers)
    return module, optimisers


def step(module: nn.Module, optimisers: dict[str, torch.optim.Optimizer]) -> None:
    x = torch.linspace(0, 1, 12).view(4, 3)
    module["a"](module["b"](x)).square().mean().backward()  # type: ignore[index]
    for optimiser in optimisers.values():
        optimiser.step()
        optimiser.zero_grad()


def test_the_next_step_is_the_same_after_a_restore(tmp_path: Path) -> None:
    (module, optimisers), (other, others) = network(0), network(1)
    run._save_checkpoint(tmp_path / "deep" / "c.safetensors", module, optimisers, FACTS)
    assert run._restore_checkpoint(tmp_path / "deep" / "c.safetensors", other, others) == FACTS
    step(module, optimisers)
    step(other, others)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    module = nn.Module()
    shared = torch.arange(4.0)
    module.register_buffer("codes", shared)
    module.register_buffer("sums", shared)
    run._save_checkpoint(tmp_path / "c.safetensors", module, {}, {})
    assert run._restore_checkpoint(tmp_path / "c.safetensors", module, {}) == {}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def torch_saved(path: Path) -> None:
    torch.save({"network": Bomb()}, path)


def truncated(path: Path) -> None:
    run._save_checkpoint(path, *network(2), FACTS)
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_facts(path: Path) -> None:
    save_file({"network.a.weight": torch.zeros(2, 3)}, path)


def with_odd_facts(path: Path) -> None:
    run._save_checkpoint(path, *network(2), [1, 2])  # type: ignore[arg-type]


def of_another_network(path: Path) -> None:
    run._save_checkpoint(path, nn.Linear(5, 5), {}, FACTS)


def of_another_shape(path: Path) -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(7)})
    run._save_checkpoint(path, module, {}, FACTS)


PLANTED = (pickled, torch_saved, truncated, empty, without_facts, with_odd_facts, of_another_network, of_another_shape)


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_not_our_checkpoint_is_ignored_and_never_unpickled(tmp_path: Path, plant: object) -> None:
    plant(tmp_path / "c.safetensors")  # type: ignore[operator]
    module, optimisers = network(0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert run._restore_checkpoint(tmp_path / "c.safetensors", module, optimisers) is None
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert run._restore_checkpoint(tmp_path / "c.safetensors", *network(0)) is None


def test_a_half_written_file_beside_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    run._save_checkpoint(path, *network(0), FACTS)
    (tmp_path / "c.safetensors.part").write_bytes(b"half")
    assert run._restore_checkpoint(path, *network(1)) == FACTS
    run._save_checkpoint(path, *network(0), FACTS | {"step": 4})
    assert run._restore_checkpoint(path, *network(1)) == FACTS | {"step": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    run._save_checkpoint(path, *network(0), FACTS)

    def half(tensors: object, part: Path, facts: object) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(run, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        run._save_checkpoint(path, *network(1), {"step": 9})
    assert run._restore_checkpoint(path, *network(1)) == FACTS


def rows(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_history_drops_the_rows_that_will_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "progress.jsonl"
    history = _History(path)
    for number in range(5):
        history.append({"step": number, "loss": 1 / 3})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    resumed = _History(path, before=3)
    assert rows(path) == [0, 1, 2]
    resumed.append({"step": 3, "loss": 0.5})
    assert rows(path) == [0, 1, 2, 3]
    _History(path)
    assert rows(path) == []


def test_numbers_are_written_with_six_digits_and_nothing_of_the_clock(tmp_path: Path) -> None:
    _History(tmp_path / "h").append({"step": 1, "loss": 0.123456789, "what": "x"})
    assert (tmp_path / "h").read_text() == '{"step": 1, "loss": 0.123457, "what": "x"}\n'


def test_a_checkpoint_is_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    timer, due = _Timer(10), []
    for now[0] in (5.0, 10.0, 15.0, 19.9, 20.0):
        due.append(timer.due())
    assert due == [False, True, False, False, True]
    assert loop._MAX_SECONDS <= 10
