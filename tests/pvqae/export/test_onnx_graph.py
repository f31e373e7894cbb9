"""The graph that is exported, still in torch: it must be the scoring code's results, whatever is chosen there."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pvqae.core import config
from pvqae.export.onnx_graph import Graph, Outputs
from pvqae.export.onnx_graph import _top_mean as top_mean
from pvqae.inference.scoring import FUSIONS, PARTS, RECON, SCALES, Scored, Scorer
from pvqae.inference.scoring import top_mean as top_mean_of
from pvqae.prior.prior import BudgetPrior, Clustered
from pvqae.samples import geometry

Picture = Callable[..., np.ndarray]
MODEL = config.Model(width=8, code_dim=4, codes=16)  # of the fixture `scorer`
# The fixture's decoder is not trained and its whitening comes from 8 images: it blows up the last bits, in which a
# batch differs from its views one by one.
CLOSE = {"rtol": 1e-4, "atol": 5e-4}


def outputs(scorer: Scorer, pictures: list[np.ndarray]) -> Outputs:
    views = [view for picture in pictures for view in geometry.canvas(picture, scorer.image).views]
    pixels, valid = (torch.from_numpy(np.stack([getattr(v, k) for v in views])) for k in ("pixels", "valid"))
    with torch.no_grad():
        return Outputs(*Graph(scorer, MODEL, 1.5)(pixels, valid))


def assert_same(found: Outputs, index: int, scored: Scored) -> None:
    np.testing.assert_allclose(float(found.image_score[index]), scored.image_score, **CLOSE)
    np.testing.assert_allclose(float(found.margin[index]), scored.image_score - 1.5, **CLOSE)
    for name in PARTS:
        np.testing.assert_allclose(float(getattr(found, name)[index]), scored.parts[name], **CLOSE)
    np.testing.assert_array_equal(found.levels[index], scored.levels)
    np.testing.assert_array_equal(found.expected_levels[index], scored.expected_levels)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("recon", RECON)
def test_every_named_choice_scores_as_the_scorer_does(
    scorer: Scorer, picture: Picture, fusion: str, recon: str
) -> None:
    shapes = [(128, 128), (50, 125), (125, 50)]  # a batch of a square and of two letterboxed images
    pictures = [picture(60 + n, *shape) for n, shape in enumerate(shapes)]
    score = config.Score(fusion=fusion, recon=recon, prior="cross_entropy")
    networks = scorer.networks.allocating(measure="cross_entropy")
    mine = replace(scorer, score=score, networks=networks)
    found = outputs(mine, pictures)
    for index, one in enumerate(pictures):
        scored = mine.one(one)
        assert_same(found, index, scored)
        whole = found.anomaly_map[index].numpy()
        (view,) = geometry.canvas(one, mine.image).views
        inside = np.ix_(view.valid.any(1), view.valid.any(0))
        np.testing.assert_allclose(whole[inside], scored.anomaly_map, **CLOSE)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("memory", ["joint", "stride16"])
def test_every_readout_scores_as_the_scorer_does(scorer: Scorer, picture: Picture, scale: str, memory: str) -> None:
    weights = {memory: 2.0}
    score = config.Score(recon="both", image=weights, map=weights, image_scale=scale, map_scale=scale)
    mine = replace(scorer, score=score)
    found = outputs(mine, [picture(70), picture(71)])
    for index in range(2):
        scored = mine.one(picture(70 + index))
        assert_same(found, index, scored)
        np.testing.assert_allclose(found.anomaly_map[index].numpy(), scored.anomaly_map, **CLOSE)


def test_clustered_priors_answer_as_they_do_one_by_one(scorer: Scorer, picture: Picture) -> None:
    torch.manual_seed(1)
    members = [BudgetPrior((4, 4), 3, 16) for _ in range(2)]
    for member in members:
        torch.nn.init.normal_(member.base)
    prior = Clustered(torch.randn(2, 3 * 16), members).eval().requires_grad_(False)
    mine = replace(scorer, networks=scorer.networks.allocating(prior=prior))
    pictures = [picture(seed) for seed in range(80, 84)]
    found = outputs(mine, pictures)
    for index, one in enumerate(pictures):
        assert_same(found, index, mine.one(one))


def test_the_mean_of_the_highest_cells_counts_the_valid_ones_only() -> None:
    values = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(3, 20, 20, dtype=torch.bool)
    valid[0], valid[1, 3:8], valid[2, 0, 0] = True, True, True
    found = top_mean(values, valid, 0.03)
    wanted = [top_mean_of(values[i][valid[i]], 0.03) for i in range(3)]
    torch.testing.assert_close(found, torch.tensor(wanted))
