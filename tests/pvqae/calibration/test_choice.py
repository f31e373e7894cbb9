from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pvqae.calibration import choice
from pvqae.calibration.choice import _Seen as Seen
from pvqae.core import config
from pvqae.datasets.anomalies import GATE_KINDS, SELECTION_KINDS
from pvqae.inference.readout import READOUTS, Readout, top_mean
from pvqae.inference.scoring import Scorer

ALL, FINEST = Readout("all", "location"), Readout("finest", "global")


def seen(image: dict[Readout, float], at_map: Readout) -> Seen:
    """Forty normals and as many defects: `image` says how far a read-out lifts a defect, `at_map` is the one whose maps
    show where it is."""
    rng = np.random.default_rng(0)
    found = Seen()
    for kind in ["", "spot"] * 40:
        noise = rng.normal()
        found.kinds.append(kind)
        found.image_scores.append({use: noise + (image.get(use, 0.0) if kind else 0.0) for use in READOUTS})
        mask = np.zeros((4, 4), dtype=np.bool_)
        mask[0, 0] = bool(kind)
        found.masks.append(mask)
        for use in READOUTS:
            found.maps[use].append(rng.normal(size=(4, 4)).astype(np.float32) + (mask * 9 if use == at_map else 0))
    return found


def test_the_readout_that_finds_the_defects_is_taken_for_images_and_maps_apart() -> None:
    score, table = choice.choose(config.Score(), [seen({FINEST: 5.0}, ALL)])
    assert (score.image_levels, score.image_scale) == ("finest", "global")
    assert (score.map_levels, score.map_scale) == ("all", "location")
    assert len(table) == len(READOUTS)
    assert table["image_auroc"].max() > 0.99


def test_of_equals_the_preferred_one_is_taken() -> None:
    score, _ = choice.choose(config.Score(), [seen(dict.fromkeys(READOUTS, 5.0) | {FINEST: 5.1}, ALL)])
    assert Readout(score.image_levels, score.image_scale) == READOUTS[0]


def test_folds_are_judged_each_on_its_own_scale() -> None:
    one, other = seen({FINEST: 5.0}, ALL), seen({FINEST: 5.0}, ALL)
    other.image_scores = [{use: value * 100 - 7000 for use, value in s.items()} for s in other.image_scores]
    score, table = choice.choose(config.Score(), [one, other])
    assert score.image_levels == "finest"
    np.testing.assert_allclose(table["image_auroc"], choice.choose(config.Score(), [one])[1]["image_auroc"])


def test_what_the_user_set_stays() -> None:
    asked = config.Score(image_levels="finer", image_scale="global")
    score, _ = choice.choose(asked, [seen({FINEST: 5.0}, ALL)])
    assert (score.image_levels, score.image_scale, score.map_levels) == ("finer", "global", "all")
    assert not choice.is_open(score)
    assert choice.is_open(asked)


def test_without_a_visible_defect_the_preferred_readout_is_taken() -> None:
    found = Seen(kinds=[""], image_scores=[dict.fromkeys(READOUTS, 0.0)])
    score, table = choice.choose(config.Score(), [found])
    assert Readout(score.map_levels, score.map_scale) == READOUTS[0]
    assert table.empty


def test_what_chooses_is_not_what_the_gate_is_made_of() -> None:
    assert not set(SELECTION_KINDS) & set(GATE_KINDS)


def test_a_look_measures_each_picture_as_it_is_and_with_each_kind(
    scorer: Scorer, picture: Callable[..., np.ndarray]
) -> None:
    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        yield from ((f"p{index}", picture(200 + index)) for index in range(3))

    found, again = choice.look(scorer, pictures()), choice.look(scorer, pictures())
    assert sorted(found.kinds) == sorted(["", *SELECTION_KINDS] * 3)
    assert found.image_scores == again.image_scores
    assert all(mask.any() == bool(kind) for mask, kind in zip(found.masks, found.kinds, strict=True))
    assert found.maps[ALL][0].shape == found.masks[0].shape == (32, 32)


@pytest.mark.parametrize("use", READOUTS)
def test_the_scores_are_those_of_the_scoring_path(
    scorer: Scorer, picture: Callable[..., np.ndarray], use: Readout
) -> None:
    found = choice.look(scorer, iter([("p", picture(210))]))
    raw = scorer.measured(picture(210))[1]
    cells = scorer.recon_map(raw, use)[raw.cells]
    assert found.image_scores[0][use] == pytest.approx(top_mean(cells, scorer.score.top))
