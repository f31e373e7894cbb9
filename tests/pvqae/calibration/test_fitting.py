"""Classes that hardly vary, or of which there is little: their statistics have a floor, and their defects are found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pvqae.calibration import calibrate, fitting, thresholds
from pvqae.calibration.normals import _ROUNDING as ROUNDING
from pvqae.core import config
from pvqae.datasets import splits
from pvqae.features.examples import prepare, retake
from pvqae.inference.measures import Allocator, Networks
from pvqae.inference.scoring import Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.prior.prior import BudgetPrior
from pvqae.samples import images

SIDE, PARAMS = 64, config.Params(image=config.Image(size=64), calibration=config.Calibration(folds=3))
Floats = np.ndarray
Surface = Callable[[np.random.Generator], Floats]


def slope(rng: np.random.Generator) -> Floats:
    """A soft slope in a slightly other direction each time."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    return 0.4 + 0.1 * (1 + rng.uniform(-0.1, 0.1)) * rows + rng.uniform(-0.02, 0.02) * columns


def plain(rng: np.random.Generator) -> Floats:
    """One grey, two levels brighter or darker."""
    return np.full((SIDE, SIDE), (120 + rng.integers(-2, 3)) / 255)


def clouds(rng: np.random.Generator) -> Floats:
    """Blotches of two grey levels."""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 5, 5)))
    fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)[0, 0].numpy()
    return 0.6 + 0.008 * fine


def equal(rng: np.random.Generator) -> Floats:
    """The same photograph, copied."""
    return slope(np.random.default_rng(0))


def networks() -> Networks:
    torch.manual_seed(0)
    backbone = backbones.make(PARAMS.model).eval()
    autoencoder = Autoencoder(PARAMS.model, backbone.spec).eval().requires_grad_(False)
    autoencoder.codebook.start(torch.randn(4000, PARAMS.model.code_dim))
    learned = (
        BudgetPrior((SIDE // 32, SIDE // 32), PARAMS.model.levels, PARAMS.prior.width).eval().requires_grad_(False)
    )
    return Networks(backbone, Allocator(autoencoder, learned, PARAMS.score.prior), {}, None)


def written(root: Path, surface: Surface, count: int) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    for number in range(count):
        images.write(root / f"{number}.png", np.repeat(surface(rng)[..., None], 3, 2).astype(np.float32))
    names = [f"{number}.png" for number in range(count)]
    columns = {"sample_id": names, "path": names, "group_id": names, "category": "part", "split": "train"}
    return splits.assign_folds(pd.DataFrame(columns), PARAMS.calibration)


def calibrated(root: Path, rows: pd.DataFrame) -> tuple[Scorer, float]:
    found = networks()
    examples = prepare(rows, root, PARAMS.image, found.backbone, "none")
    fits = splits.fits(rows)
    scorers = calibrate.fit_all(dict.fromkeys(fits, found), examples, rows, PARAMS, root)
    scores = [
        scored.image_score
        for fit in fits
        for scored in scorers[fit].many([(p, p) for p in rows["path"][splits.judges(rows, fit)]], root)
    ]
    return scorers[splits.FULL], thresholds.threshold(np.array(scores), 0.05).value


@pytest.mark.parametrize(("surface", "count"), [(slope, 10), (plain, 14), (clouds, 20), (equal, 12)])
def test_few_smooth_normals_give_a_detector_that_finds_defects(tmp_path: Path, surface: Surface, count: int) -> None:
    shipped, threshold = calibrated(tmp_path, written(tmp_path, surface, count))
    rng = np.random.default_rng(1)
    assert -5 < threshold < 50
    for number in range(4):
        picture = np.repeat(surface(rng)[..., None], 3, 2).astype(np.float32)
        dented = picture.copy()
        dented[20 + number : 28 + number, 30:38] += 0.35 if number % 2 else -0.35
        assert shipped.one(dented.clip(0, 1)).image_score > threshold
    tried = calibrate.tried(shipped, threshold, iter([("0.png", images.read(tmp_path / "0.png"))]))
    assert tried["n"] >= 2
    assert tried["found"] > 0
    assert calibrate.blind(tried, threshold) == []


@pytest.mark.parametrize("surface", [slope, plain, clouds])
def test_no_deviation_is_below_what_taking_an_image_again_changes(tmp_path: Path, surface: Surface) -> None:
    rows, found = written(tmp_path, surface, 10), networks()
    examples = prepare(rows, tmp_path, PARAMS.image, found.backbone, "none")
    again = retake(rows, [0, 4, 9], tmp_path, PARAMS.image, found.backbone, 0)
    numbers = fitting.group_numbers(rows, examples)
    bare = fitting.fit(found, examples, numbers, PARAMS, "full")
    fitted = fitting.fit(found, examples, numbers, PARAMS, "full", again)
    own = torch.tensor(
        [dict(zip(examples.rows.tolist(), numbers.tolist(), strict=True))[r] for r in again.rows.tolist()]
    )
    seen, retaken = (
        fitting._Measured(some.rows, list(fitting._measured(fitted.networks, some, groups)))
        for some, groups in ((examples, numbers), (again, own))
    )
    for name, normal in fitted.normals.items():
        grain = fitting._grain(seen, retaken, name)
        alone = float(bare.normals[name].global_deviation)
        least = max(alone, grain, ROUNDING * max(1.0, abs(float(normal.global_mean))))
        assert float(normal.global_deviation) == pytest.approx(least)
        assert torch.equal(normal.global_mean, bare.normals[name].global_mean)


def test_an_ordinary_class_has_no_use_for_the_floor(tmp_path: Path) -> None:
    """Its statistics stay as they are, to the last bit."""

    def woven(rng: np.random.Generator) -> Floats:
        grid = np.mgrid[:SIDE, :SIDE] * rng.uniform(0.3, 0.9, (2, 1, 1)) + 6 * rng.random((2, 1, 1))
        return np.clip(0.5 + 0.2 * np.sin(grid).sum(0) + 0.05 * rng.standard_normal((SIDE, SIDE)), 0, 1)

    rows, found = written(tmp_path, woven, 100), networks()
    examples = prepare(rows, tmp_path, PARAMS.image, found.backbone, "none")
    again = retake(rows, [0, 33, 66, 99], tmp_path, PARAMS.image, found.backbone, 0)
    numbers = fitting.group_numbers(rows, examples)
    bare, fitted = (fitting.fit(found, examples, numbers, PARAMS, "full", x) for x in (None, again))
    for name, normal in bare.normals.items():
        if name in bare.networks.memories:
            for field in ("mean", "deviation", "global_mean", "global_deviation"):
                assert torch.equal(getattr(normal, field), getattr(fitted.normals[name], field)), (name, field)
    assert vars(bare.scales["s_recon"]) == vars(fitted.scales["s_recon"])


@pytest.mark.parametrize(("found", "highest", "words"), [(0, 57.25, 1), (1, 57.25, 0), (0, None, 0)])
def test_a_blind_detector_is_told_with_its_figures(found: int, highest: float | None, words: int) -> None:
    tried = {"n": 0 if highest is None else 24, "found": found, "highest": highest}
    said = calibrate.blind(tried, 7199.0)
    assert len(said) == words
    assert all("none of 24 synthetic defects" in text and "7199" in text and "57.25" in text for text in said)


@pytest.mark.parametrize("most", [1, 50, 10**6])
def test_the_residuals_of_many_views_are_thinned_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    found, rows = networks(), written(tmp_path, slope, 20)
    examples = prepare(rows, tmp_path, PARAMS.image, found.backbone, "none")
    every: list[torch.Tensor] = []
    monkeypatch.setattr(fitting, "_RESIDUALS", 10**9)
    monkeypatch.setattr(fitting, "residual_whitening", lambda x: every.append(x) or torch.eye(2))  # type: ignore[func-returns-value]
    fitting.decoder_whitening(found, examples)
    monkeypatch.setattr(fitting, "_RESIDUALS", most)
    fitting.decoder_whitening(found, examples)
    assert torch.equal(every[1], every[0][:: max(1, len(every[0]) // most)])
