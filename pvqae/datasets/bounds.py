"""How far an image's statistics lie from what its class's training normals show."""

import numpy as np
import pandas as pd

# At most so many robust sigmas; a sigma is at least 10 % of the value, so a factor of two always passes: bounds find
# broken exposures and wrong files, not parts that differ. Normals of mtsd, with six exposures, reach 3.1 sigmas, those
# of bottle, toothbrush and the demo 1.9; a black image is at least 11 away. Of random classes of only eight mtsd
# normals 1 % would be stopped.
LIMIT = 8.0
STATISTICS = ("mean", "std", "sharpness")
SMALLEST_SIGMA = 0.1
BLANK_SHARE = 0.05  # of the class's median contrast; the least contrast among mtsd's normals is 0.34 of it
BLANK_CONTRAST = 1e-4


def _of_class(values: pd.Series, category: pd.Series, learnt: pd.Series) -> pd.Series:
    """The class's median of `values` over its `learnt` rows, on every row; NaN for a class that has none."""
    return category.map(values[learnt].groupby(category[learnt]).median())


def deviations(frame: pd.DataFrame, values: pd.Series, learnt: pd.Series) -> pd.Series:
    """Signed distance of each row's value (>= 0) from its class's median, in robust sigmas (1.48 MAD) of its logarithm.

    Logarithms, because exposure multiplies: mtsd's spread is wide, yet black is still far from it. 1 % of the median
    is added, so zero is far but finite. NaN where the class's median is zero, or there is no value or no class.
    """
    median = _of_class(values, frame["category"], learnt)
    scale = median.where(median > 0)
    logs = pd.Series(np.log((values + 0.01 * scale) / (1.01 * scale)), index=frame.index)
    centred = logs - _of_class(logs, frame["category"], learnt)
    sigma = 1.4826 * _of_class(centred.abs(), frame["category"], learnt)
    return centred / sigma.clip(lower=SMALLEST_SIGMA)


def inverted(frame: pd.DataFrame, mean: pd.Series, skew: pd.Series, learnt: pd.Series) -> pd.Series:
    """True for an image that lies far from its class's `learnt` rows while its negative lies among them."""

    here = _sigmas(frame, mean, mean, learnt, 0.02) + _sigmas(frame, skew, skew, learnt, 0.2)
    there = _sigmas(frame, 1 - mean, mean, learnt, 0.02) + _sigmas(frame, -skew, skew, learnt, 0.2)
    return (here > LIMIT) & (there < here / 4)


def _sigmas(frame: pd.DataFrame, values: pd.Series, known: pd.Series, learnt: pd.Series, least: float) -> pd.Series:
    """Distance of `values` from the class's median of what is `known`, in robust sigmas of at least `least`."""
    middle = _of_class(known, frame["category"], learnt)
    sigma = 1.4826 * _of_class((known - middle).abs(), frame["category"], learnt)
    return (values - middle).abs() / sigma.clip(lower=least)


def shows_something(frame: pd.DataFrame, contrast: pd.Series, learnt: pd.Series) -> pd.Series:
    """False for an image without contrast (the standard deviation of its grey levels), judged against its class."""
    smallest = (BLANK_SHARE * _of_class(contrast, frame["category"], learnt)).fillna(0).clip(lower=BLANK_CONTRAST)
    return contrast.isna() | (contrast > smallest)
