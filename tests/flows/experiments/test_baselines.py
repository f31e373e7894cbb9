"""The yardsticks find what they must, and each part does what its paper or its name says."""

import numpy as np
import pytest
import torch

from flows.experiments import baselines
from flows.experiments.baselines import BASELINES, PatchCore, _coreset
from pvqae.core import config
from pvqae.features.examples import Examples
from pvqae.model.autoencoder import nearest
from pvqae.model.backbones import Features, Spec
from pvqae.samples import geometry

SIDE, CELLS = 64, 8
PARAMS = config.parse({"image": {"size": SIDE}, "memory": {"codes": 40, "patches": 500}})
SPEC = Spec((6, 5), (5, 3), "features", frozen=True)


def features(seed: int, count: int = 1) -> Features:
    """Two levels of smooth noise, 6 channels on 4 x 4 and 5 on 8 x 8; the target is the finer one's 5 and 3 more."""
    draws = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(count, c, g, g, generator=draws) for c, g in ((6, 4), (5, CELLS)))
    target = torch.cat([fine, 3 + torch.randn(count, 3, CELLS, CELLS, generator=draws)], dim=1)
    return Features([coarse, fine], target)


def defective(seed: int) -> Features:
    """Foreign values in the lower left quarter."""
    found = features(seed)
    for x in (*found.levels, found.target):
        half = x.shape[-1] // 2
        x[..., half:, :half] += 4
    return found


@pytest.fixture(scope="module")
def examples() -> Examples:
    count = 24
    valid = torch.ones(count, SIDE, SIDE, dtype=torch.bool)
    return Examples(torch.arange(count), None, features(0, count), torch.zeros(count, 4, 4), valid)


def canvas() -> geometry.Canvas:
    return geometry.canvas(np.zeros((SIDE, SIDE, 3), dtype=np.float32), PARAMS.image)


VALID = torch.ones(1, SIDE, SIDE, dtype=torch.bool)


@pytest.mark.parametrize("name", list(BASELINES))
def test_each_scores_a_defect_above_every_normal_and_shows_where(name: str, examples: Examples) -> None:
    detector = BASELINES[name](examples, torch.arange(len(examples)), PARAMS, SPEC)
    normal = [detector.score(features(100 + i), VALID, canvas(), "n").image_score for i in range(8)]
    found = detector.score(defective(200), VALID, canvas(), "d")
    assert found.sample_id == "d"
    assert found.image_score > max(normal)
    assert found.anomaly_map.shape == (SIDE, SIDE)
    half = SIDE // 2
    elsewhere = found.anomaly_map[:half, half:].mean()
    assert found.anomaly_map[half:, :half].mean() > 1.3 * elsewhere
    assert 0 < detector.megabytes < 1


@pytest.mark.parametrize("name", list(BASELINES))
def test_each_is_the_same_every_time(name: str, examples: Examples) -> None:
    groups = torch.arange(len(examples))
    once, again = (
        BASELINES[name](examples, groups, PARAMS, SPEC).score(features(7), VALID, canvas(), "") for _ in range(2)
    )
    assert once.image_score == again.image_score
    np.testing.assert_array_equal(once.anomaly_map, again.anomaly_map)


def test_padding_takes_no_part(examples: Examples) -> None:
    """What lies in the padding, a cell away from the image, changes neither image score nor the map of the image."""
    letterboxed = geometry.canvas(np.zeros((SIDE // 2, SIDE, 3), dtype=np.float32), PARAMS.image)
    valid = torch.from_numpy(letterboxed.views[0].valid)[None]
    plain, dirty = features(5), features(5)
    for x in (*dirty.levels, dirty.target):
        x[..., : x.shape[-1] // 4 - 1, :] += 50
    for name in ("control", "covering"):
        detector = BASELINES[name](examples, torch.arange(len(examples)), PARAMS, SPEC)
        found = [detector.score(x, valid, letterboxed, "") for x in (plain, dirty)]
        assert found[0].anomaly_map.shape == (SIDE // 2, SIDE)
        assert found[0].image_score == pytest.approx(found[1].image_score, rel=1e-5)
        np.testing.assert_allclose(found[0].anomaly_map, found[1].anomaly_map, rtol=1e-4)


def test_a_coreset_covers_better_than_a_random_choice_of_its_size() -> None:
    x = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0)) ** 3
    chosen = _coreset(x, 100, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 100
    farthest = nearest(x, x[chosen])[0].max()
    assert farthest < 0.5 * nearest(x, x[torch.randperm(2000)[:100]])[0].max()


def test_a_coreset_by_parts_has_the_asked_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1001, 10, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(baselines, "_WORK", 20_000)
    chosen = _coreset(x, 103, seed=0)
    assert len(set(chosen.tolist())) == 103


def test_a_patch_near_a_rare_code_counts_more() -> None:
    """1 - softmax of the distance to the code among those to its neighbours: small in a crowd."""
    crowd = torch.zeros(9, 2) + 0.01 * torch.arange(9)[:, None]
    alone = torch.tensor([[100.0, 0.0]])
    bank = PatchCore(torch.zeros(2), torch.ones(2), torch.cat([crowd, alone]))
    common = bank._weight(torch.tensor([0.0, 0.5]), torch.tensor(0))
    assert common == pytest.approx(8 / 9, abs=0.01)
    rare = bank._weight(torch.tensor([100.0, 0.5]), torch.tensor(9))
    assert rare == pytest.approx(1.0)


def test_the_bank_holds_its_share_of_the_patches(examples: Examples) -> None:
    bank = BASELINES["patchcore_10"](examples, torch.arange(len(examples)), PARAMS, SPEC)
    assert isinstance(bank, PatchCore)
    assert len(bank.bank) == round(0.1 * len(examples) * CELLS**2)


def test_the_control_whitens_away_what_varies_together(examples: Examples) -> None:
    """A direction in which normals vary tenfold counts no more than the others."""
    loud = Features(examples.features.levels, examples.features.target.clone())  # type: ignore[union-attr]
    loud.target[:, 0] *= 10
    wide = BASELINES["control"](
        Examples(examples.rows, None, loud, examples.cost, examples.valid), torch.arange(24), PARAMS, SPEC
    )
    plain = BASELINES["control"](examples, torch.arange(24), PARAMS, SPEC)
    x, y = features(3), features(3)
    y.target[:, 0] *= 10
    assert float(wide.fine.lengths(y).mean()) == pytest.approx(float(plain.fine.lengths(x).mean()), rel=0.15)
