import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pvqae.core import config, runtime
from pvqae.features.examples import Examples
from pvqae.training import loop
from pvqae.training.run import Run, start

Params = Callable[..., config.Params]
Make = Callable[[str], Examples]
Rows = list[dict[str, Any]]


class Killed(BaseException):
    """What no handler catches."""


def train(params: config.Params, plan: runtime.Plan, examples: Examples, folder: Path) -> tuple[Run, Rows]:
    run = start(params, plan, "full")
    loop.fit(run, examples, folder, "test")
    return run, [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def mean(rows: Rows, key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def test_the_pixel_backbone_learns(params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path) -> None:
    run, rows = train(params("vqgan", steps=30, lr=4e-3), plan, examples("vqgan"), tmp_path)
    assert [row["step"] for row in rows] == list(range(30))
    assert mean(rows[-5:], "reconstruction") < 0.8 * rows[0]["reconstruction"]
    assert bool(run.autoencoder.codebook.started)
    assert not torch.equal(run.autoencoder.codebook.counts, torch.ones(16))  # it follows what it serves


def test_frozen_features_are_learned_and_the_mechanism_is_logged(
    params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path
) -> None:
    settings = params("efficientnet_lite0", steps=40, lr=4e-3)
    run, rows = train(settings, plan, examples("efficientnet_lite0"), tmp_path)
    assert run.backbone is None
    assert mean(rows[-5:], "reconstruction") < 0.9 * mean(rows[:5], "reconstruction")
    assert all(row["share_0"] + row["share_1"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert all(1 / 4 <= row["spent"] <= 1 for row in rows)
    warm, trained = rows[:4], rows[4:]
    assert {row["phase"] for row in warm} == {"warmup"}
    assert {row["phase"] for row in trained} == {"quantised"}
    assert {row["codebook_usage"] for row in warm} == {0.0}
    assert {row["commitment"] for row in warm} == {0.0}
    assert all(0 < row["codebook_usage"] <= 1 and row["perplexity"] >= 1 for row in trained)
    assert rows[4]["budget_weight"] == 0
    assert rows[-1]["budget_weight"] > 0
    assert {row["fold"] for row in rows} == {"full"}


def test_the_budget_makes_cells_coarser(params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path) -> None:
    spent = []
    for kappa in (0.0, 50.0):
        settings = params("efficientnet_lite0", steps=40, lr=1e-2, kappa=kappa, random_cells=0.0, schedule="constant")
        _, rows = train(settings, plan, examples("efficientnet_lite0"), tmp_path / str(kappa))
        spent.append(mean(rows[-5:], "spent"))
    assert spent[1] < 0.4 < spent[0] - 0.1


def test_the_discriminator_trains_before_it_is_used(
    params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path
) -> None:
    run, rows = train(params("vqgan", steps=12, adversarial=True), plan, examples("vqgan"), tmp_path)
    assert run.discriminator is not None
    assert "discriminator" not in rows[0]  # warm-up
    assert {row["adversarial_weight"] for row in rows[1:6]} == {0.0}
    assert all(0 < row["adversarial_weight"] <= 0.75 for row in rows[6:])
    assert rows[-1]["discriminator"] < rows[1]["discriminator"]


@pytest.mark.parametrize(("name", "asked"), [("vqgan", False), ("efficientnet_lite0", True)])
def test_no_discriminator_without_pixels_or_without_being_asked(
    params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path, name: str, asked: bool
) -> None:
    run, rows = train(params(name, adversarial=asked), plan, examples(name), tmp_path)
    assert run.discriminator is None
    assert all("discriminator" not in row for row in rows)


@pytest.mark.parametrize("name", ["vqgan", "efficientnet_lite0"])
@pytest.mark.parametrize("flip", [False, True])
def test_bf16_steps_are_finite_and_close_to_float32(
    params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path, name: str, flip: bool
) -> None:
    settings = params(name, horizontal_flip=flip)
    _, exact = train(settings, plan, examples(name), tmp_path / "float32")
    run, fast = train(settings, runtime.Plan("cpu", "bf16", 1, 1), examples(name), tmp_path / "bf16")
    assert all(p.dtype == torch.float32 for p in run.autoencoder.parameters())
    assert exact != fast
    assert exact[0]["loss"] == pytest.approx(fast[0]["loss"], rel=0.02)
    assert all(torch.isfinite(torch.tensor([v for v in row.values() if isinstance(v, float)])).all() for row in fast)


def test_flipping_is_off_unless_asked_for(params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path) -> None:
    _, plain = train(params("vqgan"), plan, examples("vqgan"), tmp_path / "plain")
    _, flipped = train(params("vqgan", horizontal_flip=True), plan, examples("vqgan"), tmp_path / "flipped")
    assert plain != flipped


def killed_at(monkeypatch: pytest.MonkeyPatch, fatal: int, saved: set[int]) -> None:
    """The next run saves when these many steps are done, and dies before step `fatal`."""
    real, done = loop._step, [0]

    def step(run: Run, examples: Examples, number: int) -> dict[str, Any]:
        if number == fatal:
            raise Killed
        done[0] = number + 1
        return real(run, examples, number)

    monkeypatch.setattr(loop, "_step", step)
    monkeypatch.setattr(loop._Timer, "due", lambda self: done[0] in saved)


@pytest.mark.parametrize(
    ("name", "more", "fatal", "saved"),
    [
        ("vqgan", {"adversarial": True}, 3, {3}),
        ("vqgan", {"adversarial": True}, 5, {2, 4}),
        ("vqgan", {"schedule": "adaptive", "horizontal_flip": True}, 5, {3}),  # two steps are repeated
        ("efficientnet_lite0", {}, 1, set()),  # right after warm-up, which always saves
        ("efficientnet_lite0", {}, 4, {3}),
        ("efficientnet_lite0", {}, 3, set()),
    ],
)
def test_a_killed_run_goes_on_bit_by_bit_as_if_nothing_had_happened(
    params: Params,
    plan: runtime.Plan,
    examples: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    more: dict[str, Any],
    fatal: int,
    saved: set[int],
) -> None:
    settings = params(name, **more)
    straight, _ = train(settings, plan, examples(name), tmp_path / "straight")
    with monkeypatch.context() as patch:
        killed_at(patch, fatal, saved)
        with pytest.raises(Killed):
            train(settings, plan, examples(name), tmp_path / "killed")
    torch.manual_seed(999)  # a new process has another random state
    torch.rand(7)
    resumed, _ = train(settings, plan, examples(name), tmp_path / "killed")
    assert f"resumed at step {max([1, *(s for s in saved if s <= fatal)])} of 6" in capsys.readouterr().out
    states = straight.modules.state_dict(), resumed.modules.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    histories = [(tmp_path / folder / "progress.jsonl").read_bytes() for folder in ("straight", "killed")]
    assert histories[0] == histories[1]
    assert straight.facts == resumed.facts


@pytest.mark.parametrize(
    ("name", "more"), [("vqgan", {"adversarial": True, "perceptual": 1.0}), ("efficientnet_lite0", {})]
)
def test_a_run_in_parts_is_the_run_as_a_whole(
    params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    settings, made = params(name, **more), examples(name)
    whole, _ = train(settings, plan, made, tmp_path / "whole")
    for until in (1, 4, 4, 99):
        parts = start(settings, plan, "full")
        loop.fit(parts, made, tmp_path / "parts", "test", until)
        assert parts.facts["step"] == min(until, settings.train.steps)
    states = whole.modules.state_dict(), parts.modules.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    histories = [(tmp_path / folder / "progress.jsonl").read_bytes() for folder in ("whole", "parts")]
    assert histories[0] == histories[1]


def test_a_perceptual_term_counts_for_pixels_and_is_no_part_of_what_is_kept(
    params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path
) -> None:
    plain, without = train(params("vqgan"), plan, examples("vqgan"), tmp_path / "plain")
    run, rows = train(params("vqgan", perceptual=0.5), plan, examples("vqgan"), tmp_path / "perceptual")
    assert rows[0]["reconstruction"] > without[0]["reconstruction"]
    assert run.modules.state_dict().keys() == plain.modules.state_dict().keys()
    frozen, _ = train(
        params("efficientnet_lite0", perceptual=0.5), plan, examples("efficientnet_lite0"), tmp_path / "f"
    )
    assert frozen.perceptual is None


def test_seed_and_fold_change_the_run(params: Params, plan: runtime.Plan, examples: Make, tmp_path: Path) -> None:
    settings, losses = params("vqgan", steps=2), []
    for number, (seed, fold) in enumerate([(0, "full"), (0, "full"), (1, "full"), (0, "fold-0")]):
        run = start(settings.model_copy(update={"seed": seed}), plan, fold)
        loop.fit(run, examples("vqgan"), tmp_path / str(number), "test")
        losses.append(json.loads((tmp_path / str(number) / "progress.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_the_same_weights_are_drawn_whatever_was_drawn_before(params: Params, plan: runtime.Plan) -> None:
    """A trained backbone is made before its run starts: it must not depend on the process either."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        settings = params("vqgan")
        states.append(start(settings, plan, "full").modules.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
