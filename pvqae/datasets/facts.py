"""Facts about manifest rows as plain columns, one per thing that can be wrong: what the expectations look at.

How far an image's statistics are from what its class's training normals show is one of them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pvqae.core import runtime
from pvqae.core.errors import DataError
from pvqae.core.layout import ARRIVED
from pvqae.samples.classes import Classes
from pvqae.samples.images import Bits, marked
from pvqae.samples.manifest import TRAINING

_MASKS = ("readable", "of_image_size", "marks_something", "leaves_something")
_SENSORS = (8, 10, 12)  # bits of cameras whose files have 16; a quarter of the range, 14 bits, may be an exposure
DARK, BRIGHT = 1 / 16, 15 / 16  # a class that does not reach the one, or never leaves the other, is hardly a picture
# Robust sigmas, at most; a sigma is at least 10 % of the value, so a factor of two always passes: bounds find
# broken exposures and wrong files, not parts that differ. Normals of mtsd, with six exposures, reach 3.1 sigmas, those
# of bottle, toothbrush and the demo 1.9; a black image is at least 11 away. Of random classes of only eight mtsd
# normals 1 % would be stopped.
LIMIT = 8.0
STATISTICS = ("mean", "std", "sharpness")
_SMALLEST_SIGMA = 0.1
_BLANK_SHARE = 0.05  # of the class's median contrast; the least contrast among mtsd's normals is 0.34 of it
_BLANK_CONTRAST = 1e-4


def _in_one_split(frame: pd.DataFrame, key: str) -> pd.Series:
    """Return True on rows whose value of `key` occurs in a single split."""
    pairs = frame[[key, "split"]].drop_duplicates()
    return ~frame[key].isin(pairs.loc[pairs[key].duplicated(), key])


def _mask_kept(frame: pd.DataFrame) -> pd.Series:
    """Return False on defects without a mask in a class where another defect has one.

    Synthetic defects (below gate/) have masks in every class, so they promise nothing for the photographed ones; those
    that a person labelled in review have none, and need none at the gate.
    """
    defect, masked = frame["label"] == "defect", frame["mask_path"] != ""
    made = frame["path"].str.startswith("gate/")
    arrived = frame["path"].str.contains(f"/{ARRIVED}/", regex=False)
    promised = (defect & masked).groupby([frame["category"], made, arrived]).transform("any")
    return ~defect | masked | ~promised


def _mask_problem(data: Path, path: str, height: int, width: int) -> tuple[str, str]:
    try:
        mask, seen = marked(Path(path), data)
    except DataError as error:
        return "readable", str(error)
    if mask.shape != (height, width):
        return "of_image_size", f"{path} is {mask.shape[1]} x {mask.shape[0]}, its image {width} x {height}"
    if mask.all() or not mask.any():
        name = "marks_something" if not mask.any() else "leaves_something"
        return name, f"{path} has {seen}, expected 0 where there is no defect and other values where there is one"
    return "", ""


def _mask_problems(frame: pd.DataFrame, data: Path) -> pd.DataFrame:
    """Return per row and column of `_MASKS` "" or what is wrong with its mask. Decodes the masks of defects only."""
    rows = frame[(frame["label"] == "defect") & (frame["mask_path"] != "")]
    with ThreadPoolExecutor(max_workers=min(8, runtime.cores())) as pool:  # decoding leaves the interpreter free
        problems = list(pool.map(partial(_mask_problem, data), rows["mask_path"], rows["height"], rows["width"]))
    columns = {f"mask_{name}": [text if name == kind else "" for kind, text in problems] for name in _MASKS}
    return pd.DataFrame(columns, index=rows.index, dtype=str).reindex(frame.index, fill_value="")


def _deviations(frame: pd.DataFrame, statistics: pd.DataFrame) -> pd.DataFrame:
    """Return per statistic two columns, of normals to train with and of held-out ones; NaN on all other rows."""
    normal = frame["label"] == "normal"
    training = normal & frame["split"].isin(TRAINING)
    facts = pd.DataFrame(index=frame.index)
    for name in STATISTICS:
        distance = deviations(frame, statistics[name], normal & (frame["split"] == "train")).round(3)
        facts[f"{name}_deviation"] = distance.where(training)
        facts[f"{name}_deviation_held_out"] = distance.where(normal & ~training)
    return facts


def of_images(frame: pd.DataFrame, statistics: pd.DataFrame, data: Path) -> pd.DataFrame:
    """Return `frame` with its facts. `statistics`: one column each, indexed by sha256, with `std`; `data` holds the
    masks.
    """
    known = statistics.reindex(frame["sha256"]).set_index(frame.index)
    normal = frame["label"] == "normal"
    defective_groups = frame.loc[~normal, "group_id"].unique()
    facts = {
        "group_in_one_split": _in_one_split(frame, "group_id"),
        "image_in_one_split": _in_one_split(frame, "sha256"),
        "trains_on_normal_group": ~(frame["split"].isin(TRAINING) & frame["group_id"].isin(defective_groups)),
        "kind_fits_label": normal == (frame["kind"] == "good"),
        "mask_present": _mask_kept(frame),
        # `isin` takes ten times as long
        "has_statistics": statistics.index.get_indexer(pd.Index(frame["sha256"])) >= 0,
        "not_inverted": ~_inverted(frame, known["mean"], known["skew"], normal & (frame["split"] == "train")),
        "shows_something": ~normal | shows_something(frame, known["std"], normal & (frame["split"] == "train")),
    }
    return pd.concat([frame, pd.DataFrame(facts), _mask_problems(frame, data), _deviations(frame, known)], axis=1)


def _unused_range(rows: pd.DataFrame, bits: Bits, sensors: Sequence[int]) -> str:
    """Say what the highest value of files of 16 bit, read as such, tells about the camera."""
    deep = rows[rows["bit_depth"] == 16]
    highest = round(deep["highest"].max() * 65535) if len(deep) else 65535
    fitting = [own for own in sensors if highest < 2**own]
    if bits != "auto" or not fitting:
        return ""
    reached = f"nothing above {2 ** fitting[0] - 1} of 65535 in {len(deep)} files of 16 bit"
    return f"{reached}: set image.bits to {fitting[0]}, the camera's bits; to 16 if these images are really that dark"


def _shade(rows: pd.DataFrame) -> str:
    if rows["highest"].max() < DARK:
        return f"nearly black, nothing above {rows['highest'].max():.3f} of 1"
    if rows["lowest"].min() > BRIGHT:
        return f"nearly white, nothing below {rows['lowest'].min():.3f} of 1"
    return ""


def _mixed(values: pd.Series, what: str) -> str:
    counts = values.value_counts().sort_index()
    return ", ".join(f"{count} images of {value} {what}" for value, count in counts.items()) if len(counts) > 1 else ""


def _ranges(frame: pd.DataFrame, statistics: pd.DataFrame, bits: Bits) -> pd.DataFrame:
    """Return per class, by name, "" or what is suspicious about the pixels of its photographed images."""
    known = statistics.reindex(frame["sha256"]).set_index(frame.index)[["lowest", "highest"]]
    photographed = pd.concat([frame, known], axis=1)[~frame["path"].str.startswith("gate/")]
    return pd.DataFrame(
        {
            str(name): {
                "range_used": _unused_range(rows, bits, _SENSORS),
                "range_mostly_used": "" if _unused_range(rows, bits, _SENSORS) else _unused_range(rows, bits, (14,)),
                "shade": _shade(rows),
                "one_bit_depth": _mixed(rows["bit_depth"], "bit"),
                "one_channel_count": _mixed(rows["channels"], "channels"),
            }
            for name, rows in photographed.groupby("category")
        }
    ).T


def of_classes(frame: pd.DataFrame, classes: Classes, statistics: pd.DataFrame, bits: Bits) -> pd.DataFrame:
    """Return one row per class of the manifest or of classes.yaml: where it is named, how many images it has, and what
    is suspicious about their pixels.
    """
    present = set(frame["category"])
    names = sorted(present | set(classes.classes))
    normal, test = frame["label"] == "normal", frame["split"] == "test"

    def count(rows: pd.Series) -> list[int]:
        counts = frame.loc[rows, "category"].value_counts()
        return [int(counts.get(name, 0)) for name in names]

    table = pd.DataFrame(
        {
            "category": names,
            "in_classes_file": [name in classes.classes for name in names],
            "in_manifest": [name in present for name in names],
            "training_normals": count(normal & frame["split"].isin(TRAINING)),
            "test_images": count(test),
            "test_normals": count(normal & test),
            "test_defects": count(~normal & test),
        }
    )
    return table.join(_ranges(frame, statistics, bits).reindex(names, fill_value=""), on="category")


def _of_class(values: pd.Series, category: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return the class's median of `values` over its `learnt` rows, on every row; NaN for a class that has none."""
    return category.map(values[learnt].groupby(category[learnt]).median())


def deviations(frame: pd.DataFrame, values: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return signed distance of each row's value (>= 0) from its class's median, in robust sigmas (1.48 MAD) of its
    logarithm.

    Logarithms, because exposure multiplies: mtsd's spread is wide, yet black is still far from it. 1 % of the median
    is added, so zero is far but finite. NaN where the class's median is zero, or there is no value or no class.
    """
    median = _of_class(values, frame["category"], learnt)
    scale = median.where(median > 0)
    logs = pd.Series(np.log((values + 0.01 * scale) / (1.01 * scale)), index=frame.index)
    centred = logs - _of_class(logs, frame["category"], learnt)
    sigma = 1.4826 * _of_class(centred.abs(), frame["category"], learnt)
    return centred / sigma.clip(lower=_SMALLEST_SIGMA)


def _inverted(frame: pd.DataFrame, mean: pd.Series, skew: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return True for an image far from its class's `learnt` rows whose negative is among them."""
    here = _sigmas(frame, mean, mean, learnt, 0.02) + _sigmas(frame, skew, skew, learnt, 0.2)
    there = _sigmas(frame, 1 - mean, mean, learnt, 0.02) + _sigmas(frame, -skew, skew, learnt, 0.2)
    return (here > LIMIT) & (there < here / 4)


def _sigmas(frame: pd.DataFrame, values: pd.Series, known: pd.Series, learnt: pd.Series, least: float) -> pd.Series:
    """Return distance of `values` from the class's median of what is `known`, in robust sigmas of at least `least`."""
    middle = _of_class(known, frame["category"], learnt)
    sigma = 1.4826 * _of_class((known - middle).abs(), frame["category"], learnt)
    return (values - middle).abs() / sigma.clip(lower=least)


def shows_something(frame: pd.DataFrame, contrast: pd.Series, learnt: pd.Series) -> pd.Series:
    """Return False for an image with little contrast (standard deviation of its grey levels) against its class."""
    smallest = (_BLANK_SHARE * _of_class(contrast, frame["category"], learnt)).fillna(0).clip(lower=_BLANK_CONTRAST)
    return contrast.isna() | (contrast > smallest)
