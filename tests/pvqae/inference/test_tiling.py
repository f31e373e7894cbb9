"""Large images in overlapping views: stitched maps without seams, one score over all views, bounded memory."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pvqae.core import config
from pvqae.inference import bundle, scoring
from pvqae.inference.scoring import Scored, Scorer
from pvqae.samples import geometry, images
from tests.bench import holding

Picture = Callable[..., np.ndarray]
MODEL = config.Model(width=8, code_dim=4, codes=16)  # of `scorer`


def tiled(scorer: Scorer, tiles: int = 2) -> Scorer:
    finest = {"stride8": 1.0}
    # statistics that don't depend on the place in a view
    score = config.Score(recon="memory", image=finest, map=finest, image_scale="global", map_scale="global")
    return replace(scorer, image=config.Image(size=128, aspect="tile", tiles=tiles), score=score)


@pytest.fixture(scope="module")
def pair(scorer: Scorer, picture: Picture) -> tuple[Scored, Scored]:
    """A picture of 2 x 4 views, and the same surface 32 pixels further on: other views see each place."""
    surface = picture(150, 224, 448)
    surface[100:110, 200:212] = 0.02
    surface[30:36, 330:340] = 0.9
    large = tiled(scorer)
    return large.one(surface[:, :416]), large.one(surface[:, 32:])


def test_the_stitched_map_does_not_depend_on_where_the_tiles_lie(pair: tuple[Scored, Scored]) -> None:
    here, there = (scored.anomaly_map for scored in pair)
    assert here.shape == there.shape == (224, 416)
    common, shifted = here[:, 96:352], there[:, 64:320]  # of both, 64 pixels off the image's borders
    away = np.abs(common - shifted)
    assert np.median(away) < 0.1 * common.std()
    assert np.quantile(away, 0.99) < 0.5 * common.std()
    assert np.corrcoef(common.ravel(), shifted.ravel())[0, 1] > 0.98


def test_a_defect_where_views_overlap_is_one_region(pair: tuple[Scored, Scored]) -> None:
    """In pixels of the image: there rows 100 to 110, columns 200 to 212, inside of four views."""
    here = pair[0]
    starts = [(view.top, view.left) for view in here.canvas.views]
    assert sum(top <= 100 < 110 <= top + 128 and left <= 200 < 212 <= left + 128 for top, left in starts) == 4
    height, width = here.canvas.image_shape
    level = 0.5 * float(here.anomaly_map[90:120, 190:222].max())
    regions = geometry.marks(here.anomaly_map, level, (height, width))["regions"]
    near = [
        r for r in regions if r["x"] < 230 and r["x"] + r["width"] > 180 and r["y"] < 130 and r["y"] + r["height"] > 80
    ]
    assert len(near) == 1
    assert near[0]["x"] <= 206 < near[0]["x"] + near[0]["width"]
    assert near[0]["y"] <= 105 < near[0]["y"] + near[0]["height"]


def worst_step(anomaly_map: np.ndarray) -> float:
    """The largest step where a view begins or ends, over the largest within 8 pixels beside it."""
    steps = np.abs(np.diff(anomaly_map, axis=1)).mean(axis=0)  # between column i and i + 1
    ends = [column - 1 for column in (96, 128, 192, 224, 288, 320)]
    return max(float(steps[i] / np.delete(steps[i - 8 : i + 9], 8).max()) for i in ends)


def test_no_step_shows_where_a_tile_ends(
    scorer: Scorer, pair: tuple[Scored, Scored], picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(worst_step(scored.anomaly_map) for scored in pair) < 1.5
    monkeypatch.setattr(np, "minimum", lambda x, y: np.ones(len(x)))  # all of a view weighs the same
    assert worst_step(tiled(scorer).one(picture(150, 224, 416)).anomaly_map) > 3


@pytest.mark.parametrize(
    ("shape", "tiles", "canvas", "views"),
    [
        ((448, 832), 1, (128, 238), 3),
        ((448, 832), 2, (224, 416), 8),
        ((448, 832), 3, (320, 594), 18),
        ((150, 300), 4, (150, 300), 6),  # not enlarged to get its four
        ((60, 120), 4, (128, 256), 3),  # but to one
    ],
)
def test_more_tiles_see_more_pixels(shape: tuple[int, int], tiles: int, canvas: tuple[int, int], views: int) -> None:
    params = config.Image(size=128, aspect="tile", tiles=tiles)
    found = geometry.canvas(np.zeros((*shape, 3), dtype=np.float32), params)
    assert (found.height, found.width) == canvas
    assert len(found.views) == views
    assert canvas[0] == pytest.approx(shape[0] * geometry.scale_of(shape, params)[0], abs=0.5)


@pytest.mark.parametrize("aspect", ["squash", "letterbox", "auto"])
def test_the_scale_is_that_of_the_canvas(aspect: str) -> None:
    for shape in ((100, 300), (90, 80)):
        params = config.Image(size=64, aspect=aspect)  # type: ignore[arg-type]
        canvas = geometry.canvas(np.zeros((*shape, 3), dtype=np.float32), params)
        rows, columns = geometry.scale_of(shape, params)
        assert (canvas.height, canvas.width) == (round(shape[0] * rows), round(shape[1] * columns))


def test_views_in_runs_score_as_all_at_once(scorer: Scorer, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    image, seen = picture(151, 224, 416), []
    measure = scoring.measure
    monkeypatch.setattr(scoring, "measure", lambda found, x, valid: seen.append(len(valid)) or measure(found, x, valid))
    monkeypatch.setattr(scoring, "_CHUNK", 8)
    whole = tiled(scorer).one(image)
    monkeypatch.setattr(scoring, "_CHUNK", 3)
    parts = tiled(scorer).one(image)
    assert (seen[0], sorted(seen[1:])) == (8, [2, 3, 3])
    assert parts.image_score == pytest.approx(whole.image_score, abs=1e-3)
    np.testing.assert_allclose(parts.anomaly_map, whole.anomaly_map, atol=1e-3)
    np.testing.assert_array_equal(parts.levels, whole.levels)


def test_runs_share_the_threads_and_score_as_on_one(
    scorer: Scorer, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, measure = [], scoring.measure

    def counted(found: Any, x: Any, valid: torch.Tensor) -> Any:
        used.append(torch.get_num_threads())
        return measure(found, x, valid)

    monkeypatch.setattr(scoring, "measure", counted)
    monkeypatch.setattr(scoring, "_CHUNK", 2)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(tiled(scorer).one(picture(151, 224, 416)))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert used == [1] * 8
    assert found[0].image_score == found[1].image_score
    np.testing.assert_array_equal(found[0].anomaly_map, found[1].anomaly_map)


def test_views_in_runs_leave_no_features_behind(
    scorer: Scorer, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, through = [], scoring.through

    def watched(*given: Any) -> Any:
        features, valid = through(*given)
        alive.append(weakref.ref(features.target))
        return features, valid

    monkeypatch.setattr(scoring, "through", watched)
    monkeypatch.setattr(scoring, "_CHUNK", 3)
    raw = tiled(scorer).measured(picture(153, 224, 416))[1]
    gc.collect()
    assert [found() for found in alive] == [None] * 3
    assert len(raw.budget.levels) == 8


def test_a_small_defect_weighs_the_same_in_a_larger_image(scorer: Scorer, picture: Picture) -> None:
    """Its cells are not averaged with more and more good ones."""
    large, risen = tiled(scorer), []
    for width in (224, 416, 608):
        surface = picture(152, 224, width)
        dented = surface.copy()
        dented[100:112, 100:112] = 0.02
        assert large.one(dented).levels.shape == (7, width // 32)
        risen.append(large.one(dented).image_score - large.one(surface).image_score)
    assert risen[2] > 0.6 * risen[0] > 0


_PEAK = """
import sys
import torch
from pathlib import Path
from pvqae.inference import bundle
from tests.bench import holding
torch.set_num_threads(1)
detector = bundle.load(sys.argv[1])
detector.score(Path(sys.argv[2])).anomaly_map  # what one batch of views takes
before = holding.settled()
result = detector.score(Path(sys.argv[3]))
detector.marks(result), result.anomaly_map
print(len(result.canvas.views), holding.peak() - before)
"""


def test_memory_beyond_image_and_map_does_not_grow_with_the_views(
    scorer: Scorer, picture: Picture, tmp_path: Path
) -> None:
    """16 bit grey, from its file to what is marked."""
    card = {"threshold": 0.0, "map_threshold": 0.0, "map_scale": [0.0, 1.0], "pixel": {"threshold": 8.0}}
    params = config.Params(model=MODEL, prior=config.Prior(width=16))
    bundle.save(tmp_path / "bundle", tiled(scorer, 64), params, "cloth", {}, card)
    large = np.tile(picture(154, 224, 416), (4, 8, 1))
    images.write(tmp_path / "small.png", large[:224, :416], 1, 16)
    images.write(tmp_path / "large.png", large, 1, 16)
    command = [sys.executable, "-c", _PEAK, *(str(tmp_path / name) for name in ("bundle", "small.png", "large.png"))]
    done = subprocess.run(command, cwd=holding.PROJECT, check=True, capture_output=True, text=True).stdout
    views, peak = map(int, done.split())
    assert views == 9 * 35
    pixels = large[..., 0].size
    assert peak < pixels * (12 + 2 + 4 + 4) + 60e6, f"{peak / 1e6:.0f} MB for {pixels * 12 / 1e6:.0f} MB of pixels"
